"""Notifications by the settings: receivers, and the periodic work."""
