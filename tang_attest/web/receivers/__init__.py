"""The ways to receivers of notifications."""
