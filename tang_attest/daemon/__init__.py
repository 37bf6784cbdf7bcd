"""The parts of a service: sockets, worker processes, and messages to the service manager."""
