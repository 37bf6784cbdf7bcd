"""The audit record of an installation."""
