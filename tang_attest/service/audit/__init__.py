"""The audit record: its actors, its refusals, and the chain over it."""
