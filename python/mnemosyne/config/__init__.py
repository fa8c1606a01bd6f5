"""Settings and secrets: read here once, handed on as values. See ``.settings`` and ``.secrets``."""
