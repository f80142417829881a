"""The built-in tasks, one a module; each registers itself through ``register_tasks``."""
