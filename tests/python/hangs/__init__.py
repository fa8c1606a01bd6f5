"""Programs that must come to an end: each scenario is a function, run in a process of its own by ``watchdog.py``.

A scenario prints what it saw; the test compares. It does not say how long it takes: that is the watchdog's.
"""
