"""The pure core: bytes in, frozen values out.

Nothing here is asynchronous, reads a clock or a file, or imports anything of ours outside this package except
:mod:`tang_attest.errors`.  An unlock is five values, each made only from the one before it::

    EnrolledDevice -> Challenge -> VerifiedQuote -> Permit -> Reply
    enrollment.py     challenge.py  quote.py        policy.py  exchange.py
"""
