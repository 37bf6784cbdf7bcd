"""Upkeep: pruning of used nonces, and readiness."""
