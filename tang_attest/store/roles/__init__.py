"""Roles of the store, one module for each of :mod:`tang_attest.ports`; the Protocol there documents the
methods.

A role decides the extent of a transaction; the modules of ``store/records`` have its statements.
"""
