"""Signatures of console operators by their passkeys (WebAuthn Level 2), pure: checked online and in the record."""
