"""Commands for policies, and for the boots that they refused."""
