"""The console: pages on which operators look at machines and approve, on a listener of its own.

* ``app.py`` routes requests, ``guard.py`` decides who gets in, ``routes/`` read, act and render;
* ``views/`` are pure: they turn records into what a page shows;
* every string reaches a page by ``text.py``, and ``templates/`` escape it.
"""
