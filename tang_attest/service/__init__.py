"""The use cases: each reads as its steps, and declares the roles of the store that it needs."""
