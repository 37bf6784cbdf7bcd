"""Roles of the store, one module for each of :mod:`tang_attest.ports`; the Protocol there documents the methods.

A role says what is one transaction; the modules of ``store/records`` say what is in it.
"""
