"""Roles: the store, keys and world that use cases need, as Protocols, and the records that pass through them.

Records are plain frozen values.  Times are aware UTC datetimes.  Digests and public structures are bytes;
private keys only ever appear *sealed*.
"""
