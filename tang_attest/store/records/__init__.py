"""Records: one module for each group of tables."""
