"""A conformance kit for docs/protocol.md that needs Python, `cryptography`, and nothing of this project's program.

    python tools/conformance server URL --token-file FILE     tests a server, as a client with a TPM in software
    python tools/conformance client --ak-public FILE -- CMD   tests a client, as a server

The kit implements the document a second time, on purpose: the server's code and the kit agree only through it.
"""
