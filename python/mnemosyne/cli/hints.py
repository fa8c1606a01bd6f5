"""Hints that can be typed as they stand: a command about a run has to name the store where the run is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnemosyne.cli.options import Options

__all__ = ["explain_command", "resume_command", "with_store"]

_ABOUT_RUNS = re.compile(
    r"\bmnemosyne (?:runs\b|(?:show|events|cancel|resume) r-[\w-]++|retry r-[\w-]++ [\w.-]++)(?! --store)"
)


def explain_command(code: str) -> str:
    """Return the command that says more about an error, for one whose next step only its page can tell."""
    return f"mnemosyne explain {code}"


def resume_command(run: str, options: Options) -> str:
    """Return the command that resumes ``run`` when it is typed in the same folder."""
    words = ["mnemosyne", "resume", run]
    words += ["--store", str(options.store)] if options.store else []
    # A run never remembers its key, nor where the key was.
    words += ["--api-key-file", str(options.api_key_file)] if options.api_key_file else []
    return shlex.join(words)


def with_store(hint: str, store: Path | None) -> str:
    """Return ``hint`` with the store that the user named, in each command about runs."""
    if store is None:
        return hint
    flag = f" --store {shlex.quote(str(store))}"
    return _ABOUT_RUNS.sub(lambda command: command[0] + flag, hint)
