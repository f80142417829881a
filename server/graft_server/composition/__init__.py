"""Adapters made of adapters, and the base model with one taken in; the arithmetic runs in a process of its own."""
