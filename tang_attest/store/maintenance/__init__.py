"""Maintenance of a whole database: upgrade, backup, restore, rekeying, checks."""
