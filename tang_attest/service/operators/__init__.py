"""Operators of the console: their roles, passkeys, sessions, and the acts that they sign."""
