"""Rounds: verification of running machines."""
