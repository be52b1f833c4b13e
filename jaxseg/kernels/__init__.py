"""Fast forms of single operations, each beside the plain JAX function that defines it."""
