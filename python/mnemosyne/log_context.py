"""What a line of the log is about. Apart from the log itself: every agent needs it, few processes configure a log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

__all__ = ["FIELDS", "log_context", "say_what_it_is_about"]

FIELDS = ("run", "item", "attempt", "role", "agent", "generation", "epoch")
"""What a line is about, in the order in which it is written."""

_about: Callable[[], Mapping[str, object]] = dict


def say_what_it_is_about(source: Callable[[], Mapping[str, object]]) -> None:
    """Have ``source`` asked, in the thread and task that logs, what a line is about."""
    global _about
    _about = source


def log_context(record: logging.LogRecord) -> dict[str, object]:
    """Return what a record is about: its own fields where it came from Rust, else the work at hand."""
    own = getattr(record, "mnemosyne", None)
    known = own if isinstance(own, Mapping) else _about()
    return {name: _number(known[name]) for name in FIELDS if known.get(name) is not None}


def _number(value: object) -> object:
    """Rust's fields come as text."""
    return int(value) if isinstance(value, str) and value.isdigit() else value
