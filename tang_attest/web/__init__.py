"""The HTTP edge: the only importer of aiohttp.

A handler reads, the core decides, and one table answers (problems.py).
"""
