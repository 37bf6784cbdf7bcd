"""X.509 certificates as TPM vendors write them: strict reading, public keys, signatures."""
