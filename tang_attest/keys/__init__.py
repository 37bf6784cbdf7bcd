"""Private keys as they are kept: files of a Tang key directory, and encrypted in the database."""
