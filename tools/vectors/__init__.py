"""The makers of vectors/: one module for each kind of test vector, from fixed keys, the same bytes each time."""
