"""Secrets are taken out of every text that leaves the process: by value, where we know them, and by shape (SECRET-1).

*By value*: whoever takes hold of a key calls ``hide_secret``, and from then on no piece of it of eight characters
passes, because servers like to quote the beginning of a key they refuse. *By shape*: what looks like a key is hidden
even if nobody told us of it; a few words too many are a small price.
"""

from __future__ import annotations

import functools
import re
import threading

__all__ = ["HIDDEN", "NO_KEY", "hide_secret", "redact"]

HIDDEN = "[hidden]"
NO_KEY = "mnemosyne-no-key"
"""Sent to a server that the user named without a key: servers on one's own machine want a header, any header. It is no
secret, and its pieces are our own name."""
_PIECE = 8
"""Characters of a secret that tell too much of it."""

# As text, and compiled when the first one is looked for: that takes 3 ms, and an agent's first item needs none.
_SHAPES = (
    r"sk-ant-[A-Za-z0-9_\-.]*"  # Anthropic's keys and tokens, also a beginning of one
    r"|\bsk-[A-Za-z0-9_\-]{12,}"
    r"|\b(?:ghp|gho|ghs|github_pat|xox[abprs]|AKIA|ASIA|AIza|glpat|hf)[_\-A-Za-z0-9]{12,}"
    r"|\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*"  # a signed token (JWT)
    r"|AGE-SECRET-KEY-1[A-Z0-9]*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # user and password of an address
)
_NAMED = (
    r"(?i)(\b(?:authorization|x-api-key|[a-z_]*api[_-]?key|auth[_-]?token|password|secret)"
    r"[\"']?\s*[:=]\s*[\"']?(?:bearer\s+|basic\s+)?)([^\s\"',;}&]{4,})"
)
"""A value that follows the name of a secret. What is shorter is no secret, and the words "key = ok" are none."""

_lock = threading.Lock()
_pieces: frozenset[str] = frozenset()
"""Every piece of eight characters of every known secret. Replaced, never changed: readers take no lock."""


def hide_secret(value: str) -> None:
    """Hide ``value`` and every piece of it from now on. What is shorter than eight characters cannot be told from text.

    Called where a key is resolved, before anything could be said about it.
    """
    global _pieces
    if len(value) < _PIECE or value == NO_KEY:
        return
    with _lock:
        _pieces = _pieces | {value[at : at + _PIECE] for at in range(len(value) - _PIECE + 1)}


def redact(text: str) -> str:
    """Return ``text`` without secrets."""
    pieces = _pieces
    # Looked for one by one: that is ten times as fast as a window that slides over every line.
    if any(piece in text for piece in pieces):
        text = _without_pieces(text, pieces)
    if "sk-" in text or "://" in text or _worth_a_look(text):
        text = _pattern(_SHAPES).sub(HIDDEN, text)
        text = _pattern(_NAMED).sub(rf"\g<1>{HIDDEN}", text)
    return text


_SIGNS = r"(?i)key|token|secret|password|authorization|eyJ|gh[ops]_|xox|AKIA|ASIA|AIza|glpat|hf_"


def _worth_a_look(text: str) -> bool:
    return _pattern(_SIGNS).search(text) is not None


@functools.cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


def _without_pieces(text: str, pieces: frozenset[str]) -> str:
    """Replace each stretch of text that is made of pieces; a window of eight slides over the text once."""
    hidden: list[tuple[int, int]] = []
    for at in range(len(text) - _PIECE + 1):
        if text[at : at + _PIECE] in pieces:
            if hidden and at <= hidden[-1][1]:
                hidden[-1] = (hidden[-1][0], at + _PIECE)
            else:
                hidden.append((at, at + _PIECE))
    if not hidden:
        return text
    parts, end = [], 0
    for start, stop in hidden:
        parts += [text[end:start], HIDDEN]
        end = stop
    return "".join([*parts, text[end:]])
