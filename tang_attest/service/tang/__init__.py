"""Tang: the server's own keys, advertisements, and exchanges without evidence."""
