"""Policies: reference values, changes, rollouts, and announcements of the next boot."""
