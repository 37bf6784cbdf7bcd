"""Enrollment: a machine with a token becomes a device with an exchange key."""
