"""Endorsement keys: verification of their certificates up to a trust anchor."""
