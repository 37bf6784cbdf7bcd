"""Looking at an installation: what is well, what soon is not, and what to do.  Nothing is changed."""
