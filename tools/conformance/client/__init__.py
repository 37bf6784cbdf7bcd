"""Checks of a client: the kit is a server that behaves, and one that does not."""
