"""Other programs: the only package that starts processes for a command or a request."""
