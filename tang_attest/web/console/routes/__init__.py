"""Handlers of the console's pages: thin, each reads, acts and renders."""
