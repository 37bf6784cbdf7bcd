"""The gate: connections, TLS, bodies and limits, before a request is worth any work."""
