"""Signed reference values: statements that a machine brings, and the signers whose statements a policy believes."""
