"""Other programs that are run: the only place that starts processes for a command or a request."""
