"""Roles of the store, the keys and the world, as Protocols, and the records that pass through them.

Records are plain frozen values.  Times are aware UTC datetimes.  Digests and public structures are bytes;
private keys appear only encrypted.
"""
