"""The built-in dataset readers, one format a module; each registers itself through ``register_readers``."""
