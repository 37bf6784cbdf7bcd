"""Commands for an installation: its server, database, keys, record and tokens."""
