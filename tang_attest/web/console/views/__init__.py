"""View models of the console's pages: pure functions from records to plain values."""
