"""One file an operation: its definition, its forms for TPU, GPU and CPU, its derivative, and the choice."""
