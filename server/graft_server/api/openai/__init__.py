"""The OpenAI-shaped part of the API: any client written for that service can talk to an adapter by its name."""
