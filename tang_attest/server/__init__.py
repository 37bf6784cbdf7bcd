"""The running server: its composition, and its periodic work."""
