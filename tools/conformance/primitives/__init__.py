"""Encodings, curves, JOSE and the texts of docs/protocol.md, each implemented from its specification."""
