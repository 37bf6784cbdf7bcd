"""The TPM 2.0 structures that the protocol carries, and a TPM in software that makes them, right or wrong."""
