"""Settings and secrets: read here once, handed on as values. See :mod:`.settings` and :mod:`.secrets`."""
