"""Checks of a server: the kit is a client with a TPM in software."""
