"""When a server that refused a request for now says that it may be asked again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["seconds_until_reset"]

_LIMITS = ("requests", "tokens", "input-tokens", "output-tokens")


def seconds_until_reset(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the seconds to wait, or None where the server names no time that can be read.

    ``retry-after-ms`` and ``retry-after`` (seconds or a date) come first; else the latest reset of the limits that the
    ``anthropic-ratelimit-*`` headers say are used up.
    """
    moment = now or datetime.now(UTC)
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        seconds = _number(headers.get(name))
        if seconds is not None:
            return seconds / unit
    date = _date(headers.get("retry-after"))
    resets = [date] if date is not None else list(_used_up(headers))
    return max(0.0, (max(resets) - moment).total_seconds()) if resets else None


def _used_up(headers: Mapping[str, str]) -> Iterator[datetime]:
    for limit in _LIMITS:
        if headers.get(f"anthropic-ratelimit-{limit}-remaining") == "0":
            try:
                reset = datetime.fromisoformat(headers[f"anthropic-ratelimit-{limit}-reset"])
            except (KeyError, ValueError):
                continue
            if reset.tzinfo is not None:
                yield reset


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None


def _date(text: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(text or "")
    except ValueError:
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
