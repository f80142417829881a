"""The vLLM engine: the engine contract over vLLM's ``AsyncLLM``."""
