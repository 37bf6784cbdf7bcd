"""``tang-attest checkquote``: verification of a quote in files."""
