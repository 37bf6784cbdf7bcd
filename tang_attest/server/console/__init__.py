"""The composition of the console."""
