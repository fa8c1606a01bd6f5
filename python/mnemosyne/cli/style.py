"""How text for people looks: one line, no control characters, a little colour on a terminal and nowhere else."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from typing import TextIO

__all__ = ["Style", "one_line", "short_count", "visible_lines"]

_PIPED_WIDTH = 160
_LEAST_WIDTH = 60
_UNSEEN = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
"""Control characters but tab and newline, and those that turn the direction of writing."""
_CONTROL = re.compile(f"[{_UNSEEN}\t\n]+")
_INVISIBLE = re.compile(f"[{_UNSEEN}]")

_COLOURS = {"good": "32", "bad": "31", "warn": "33", "dim": "2", "strong": "1"}


class Style:
    """Colours and the width of one stream.

    Attributes:
        width: Characters per line; texts are cut to it.
        draws: Whether it is a terminal on which something can be drawn again.
    """

    def __init__(self, stream: TextIO | None) -> None:
        tty = stream is not None and stream.isatty()
        self.width = max(shutil.get_terminal_size().columns, _LEAST_WIDTH) if tty else _PIPED_WIDTH
        self.draws = tty and os.environ.get("TERM", "dumb") != "dumb"
        self._colours = tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def paint(self, text: str, colour: str) -> str:
        """Return ``text`` in a colour: good, bad, warn, dim, strong, or "" for none."""
        if not self._colours or not colour or not text:
            return text
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"

    def row(self, cells: Sequence[tuple[str, int, str]]) -> str:
        """Return one line of cells ``(text, width, colour)``, cut to the width of the stream.

        A negative width aligns right. Cut before it is painted, so that no escape sequence is cut in half.
        """
        left, line = self.width, ""
        for text, width, colour in cells:
            padded = text.rjust(-width) if width < 0 else text.ljust(width)
            shown = padded if len(padded) <= left else padded[: max(left - 3, 0)] + "..."[: max(left, 0)]
            line += self.paint(shown, colour)
            left -= len(shown)
            if left <= 0:
                break
        return line.rstrip()


def one_line(text: object) -> str:
    """Return ``text`` on one line. What models and programs say must not move the cursor or forge lines of ours."""
    return " ".join(_CONTROL.sub(" ", str(text)).split())


def visible_lines(text: str) -> list[str]:
    """Return the lines of ``text`` with control characters written out (``\\x1b``), so they do nothing; tabs stay."""
    text = text.replace("\r\n", "\n")
    written = _INVISIBLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
    return written.rstrip("\n").split("\n")


def short_count(count: int) -> str:
    """Return ``950``, ``1.2k`` or ``3.4M``."""
    if count < 1_000:
        return str(count)
    return f"{count / 1_000:.1f}k" if count < 999_950 else f"{count / 1_000_000:.1f}M"
