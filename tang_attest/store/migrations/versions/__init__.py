"""One file for each revision of the schema; those up to 0009 are in `first`."""
