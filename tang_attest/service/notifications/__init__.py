"""Notifications: events that want a person become messages to the receivers that the settings name."""
