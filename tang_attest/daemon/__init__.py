"""Being a service: sockets, worker processes, and what the service manager wants to know."""
