"""What load tests need of the server's packages: adapters to ask, without training any."""
