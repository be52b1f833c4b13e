"""Linen pieces with no opinion on the task: convolution, normalisation, resize, attention."""
