"""One way to write JSON for hashing, so that a request has one name everywhere.

The demo server logs it as ``body_sha256``, ``step_started`` carries it as ``request_sha256``, and the journal finds a
step by it. Keys are sorted, there is no white space, text is UTF-8.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # pydantic costs 150 ms, and the demo server hashes without it
    from pydantic import JsonValue

__all__ = ["canonical_json", "sha256_json"]


def canonical_json(value: JsonValue) -> bytes:
    """Return the one byte string that stands for ``value``; NaN and infinity raise ``ValueError``."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def sha256_json(value: JsonValue) -> str:
    """Return the SHA-256 of ``canonical_json`` in hexadecimal."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
