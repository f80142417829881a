"""Figures that Prometheus reads: what requests cost by adapter, in few labels, and what the engine tells."""
