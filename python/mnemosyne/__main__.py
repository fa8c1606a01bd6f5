"""``python -m mnemosyne``: the same as the command ``mnemosyne``."""

from __future__ import annotations

import sys

from mnemosyne.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
