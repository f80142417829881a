"""What runs the model: the contract, the process it runs in, its supervisor, and one package an engine."""
