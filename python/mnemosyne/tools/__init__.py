"""What an agent may do in its tree, and nowhere else."""

from __future__ import annotations

from mnemosyne.tools.toolbox import Toolbox, ToolOutcome

__all__ = ["ToolOutcome", "Toolbox"]
