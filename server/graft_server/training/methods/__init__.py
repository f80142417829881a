"""The built-in adapter methods. Importing this package imports no torch."""

from graft_server.training.methods.detect import detect_method

__all__ = ["detect_method"]
