"""Voices that are not ours: clients and checkers by others. `make voices` installs them and runs this folder."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "e2e")]  # helpers; pytest itself adds no folder in this import mode
