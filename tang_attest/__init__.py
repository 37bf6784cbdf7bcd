"""A Tang-compatible server that answers the exchange only after a TPM 2.0 quote passes."""

__version__ = "0.1.0"
