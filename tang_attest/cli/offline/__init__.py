"""Commands that need no installation: they read files."""
