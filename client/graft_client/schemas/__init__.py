"""The wire contract: every request and response body, one module a resource, for server and client."""
