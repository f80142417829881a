"""The embedded engine: a transformers model with paged attention and mixed-adapter layers, on CPU, CUDA or MPS."""
