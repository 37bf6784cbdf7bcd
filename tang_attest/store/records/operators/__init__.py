"""Operators of the console: their accounts, sessions, and the acts that they sign."""
