"""The offline demo model: a real HTTP server that speaks the Messages API, and a small project for it to finish.

The model is a pure function of the request: no turn counter, no memory, no clock. It knows the words of a small rule
language (``rules``) and nothing about the sample: names and values are read from the request. It
costs nothing, it needs no key, and it says so wherever it appears. What it cannot do it refuses.
"""

__all__: list[str] = []
