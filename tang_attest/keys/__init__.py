"""Private keys as they are kept: files of a Tang key directory, and sealed in the database."""
