"""Faults on purpose: a script says which request meets which failure, and the demo server gives it on the wire.

A script is a JSON object, ``{"seed": 0, "faults": [...]}``. Each entry names a ``fault`` and the requests that it is
for; a key that is not known is refused, since a fault that never comes would look like a recovery. Every entry counts
the requests that it is for by itself, from 1 on, in the order of their arrival, and of the entries that are due the
first one is given. So the same requests in the same order meet the same faults, those with a probability included.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from mnemosyne.demo import model, wire
from mnemosyne.demo.wire import Block, RefusedError
from mnemosyne.errors import InvalidInput

__all__ = ["Fault", "FaultScript", "alter", "error", "headers", "load", "stream"]

_LARGEST_SCRIPT = 1_000_000
"""Bytes."""
_STATUS_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""The statuses that can be given, with the API's name for each."""
_STOPS = {
    "refusal": "refusal",
    "max_tokens": "max_tokens",
    "context_window_exceeded": "model_context_window_exceeded",
}
_STREAMED = frozenset({"stream_error", "malformed"})
_MESSAGES = "/v1/messages"


@dataclass(frozen=True)
class Fault:
    """What goes wrong. Which attributes matter depends on ``kind``.

    Attributes:
        kind: The name of the fault, which the log of the server repeats.
        status: HTTP status of ``status``.
        message: The server's words, of ``status`` and ``stream_error``.
        retry_after: Seconds in the header ``retry-after``; None leaves it out.
        reset_after: Seconds until the moment in the headers ``anthropic-ratelimit-*-reset``; None leaves them out.
        error_type: Of ``stream_error``.
        after_events: Events of the stream that come first, of ``stream_error`` and ``malformed``.
        after_bytes: Bytes of the answer's body that come first, of ``stall`` and ``cut``; a negative number counts from
            the end of the body.
        ending: How ``cut`` ends the connection: ``close``, ``reset``, or ``clean``, which looks like a whole answer.
        bytes_per_second: Of ``slow``.
    """

    kind: str
    status: int = 529
    message: str = ""
    retry_after: float | None = None
    reset_after: float | None = None
    error_type: str = "overloaded_error"
    after_events: int = 3
    after_bytes: int = 0
    ending: str = "close"
    bytes_per_second: int = 1000


@dataclass(frozen=True)
class _When:
    """Which requests an entry is for, and which of those meet its fault."""

    path: str = _MESSAGES
    role: str | None = None
    phase: str | None = None
    contains: str | None = None
    first: int = 1
    last: int | None = None
    probability: float = 1.0

    def selects(self, path: str, body: Mapping[str, object]) -> bool:
        if path != self.path:
            return False
        if self.role is not None or self.phase is not None:
            role, phase = model.purpose(body)
            if self.role not in (None, role) or self.phase not in (None, phase):
                return False
        return self.contains is None or any(self.contains in text for text in _texts(body))


class FaultScript:
    """The faults of one server; counts the requests, from any thread."""

    def __init__(self, entries: Sequence[tuple[_When, Fault]], seed: int = 0) -> None:
        self._entries = entries
        self._seed = seed
        self._counts = [0] * len(entries)
        self._lock = threading.Lock()

    def pick(self, path: str, body: Mapping[str, object], *, answered: bool) -> Fault | None:
        """Return the fault that a request meets.

        Args:
            path: Of the request, without its query.
            body: The parsed body.
            answered: Whether the model has an answer. One that refuses anyway cannot be cut short or refused.
        """
        due: Fault | None = None
        for number, (when, fault) in enumerate(self._entries):
            if not when.selects(path, body) or not _possible(fault, body, answered):
                continue
            with self._lock:
                self._counts[number] += 1
                count = self._counts[number]
            if due is None and self._is_due(number, when, count):
                due = fault
        return due

    def _is_due(self, number: int, when: _When, count: int) -> bool:
        if count < when.first or (when.last is not None and count > when.last):
            return False
        drawn = hashlib.sha256(f"{self._seed} {number} {count}".encode()).digest()
        return int.from_bytes(drawn[:8], "big") < when.probability * 2**64


def _possible(fault: Fault, body: Mapping[str, object], answered: bool) -> bool:
    if fault.kind in _STOPS:
        return answered
    return fault.kind not in _STREAMED or (answered and body.get("stream") is True)


def _texts(value: object) -> Iterator[str]:
    """Every text in a request, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _texts(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry)


# --- what is given ------------------------------------------------------------------------------------------------


def error(fault: Fault) -> RefusedError:
    """Return the error of ``status`` and ``stream_error``."""
    type = fault.error_type if fault.kind == "stream_error" else _STATUS_TYPES[fault.status]
    return RefusedError(fault.message or f"{type}, because a fault script says so", fault.status, type)


def headers(fault: Fault) -> Iterator[str]:
    """Yield the headers that tell a client when to come back."""
    if fault.retry_after is not None:
        yield f"retry-after: {fault.retry_after:g}"
    if fault.reset_after is not None:
        reset = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + fault.reset_after))
        for what in ("requests", "tokens", "input-tokens", "output-tokens"):
            yield f"anthropic-ratelimit-{what}-limit: 50"
            yield f"anthropic-ratelimit-{what}-remaining: 0"
            yield f"anthropic-ratelimit-{what}-reset: {reset}"


def alter(fault: Fault, message: Block, body: Mapping[str, object]) -> Block:
    """Return ``message`` with the stop reason that the fault gives it, and no more than half of its last block.

    The input of a tool that is streamed is halved in ``stream``: only there half a JSON text can be sent.
    """
    reason = _STOPS.get(fault.kind)
    content, usage = message.get("content"), message.get("usage")
    if reason is None or not isinstance(content, list) or not isinstance(usage, dict):
        return message
    if reason == "refusal":
        details: Block = {"type": "refusal", "category": None, "explanation": "a fault script says so"}
        return message | {"content": [], "stop_reason": reason, "stop_details": details}
    spent = body.get("max_tokens") if reason == "max_tokens" else usage["output_tokens"]
    cut = [
        block if body.get("stream") is True and block["type"] == "tool_use" else _half(block) for block in content[-1:]
    ]
    return message | {
        "content": [*content[:-1], *cut],
        "stop_reason": reason,
        "usage": usage | {"output_tokens": spent},
    }


def _half(block: Block) -> Block:
    if block["type"] == "tool_use":
        return block | {"input": {}}
    text = str(block.get("text", ""))
    return block | {"text": text[: len(text) // 2 + 1]}


def stream(fault: Fault | None, events: Iterable[Block], request: str) -> Iterator[bytes]:
    """Yield the events of an answer as they go out, with what the fault does to one of them.

    Args:
        fault: None, or a fault that leaves the events alone, changes nothing.
        events: The events of the whole answer.
        request: The id of the request, for ``stream_error``.
    """
    whole = list(events)
    if fault is None or fault.kind not in _STREAMED:
        if fault is not None and fault.kind in _STOPS:
            _halve_tool_input(whole)
        yield from map(wire.encode, whole)
        return
    place = min(fault.after_events, len(whole) - 1)  # message_stop would make the answer a good one
    yield from map(wire.encode, whole[:place])
    if fault.kind == "stream_error":
        yield wire.encode(wire.error_body(error(fault), request))
        return
    sound = wire.encode(whole[place]).rstrip()
    yield sound[: -max(2, len(sound) // 4)] + b"\n\n"
    yield from map(wire.encode, whole[place + 1 :])


def _halve_tool_input(events: list[Block]) -> None:
    """Leave half of the last tool's input, if the answer ends with one."""
    opened = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    if not opened or not (isinstance(opened[-1], dict) and opened[-1]["type"] == "tool_use"):
        return
    place = max(number for number, event in enumerate(events) if event["type"] == "content_block_delta")
    text = json.loads(json.dumps(events[place]["delta"]))["partial_json"]
    events[place] |= {"delta": {"type": "input_json_delta", "partial_json": text[: len(text) // 2]}}


# --- the script ---------------------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str]) -> FaultScript:
    """Read a fault script.

    Raises:
        InvalidInput: The file cannot be read (MN-0160), or is no fault script; the message names the place (MN-0161).
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_LARGEST_SCRIPT + 1)
        if len(text) > _LARGEST_SCRIPT:
            raise ValueError("it is too long")
        script = json.loads(text, object_pairs_hook=_object)
    except OSError as problem:
        raise _unreadable(path, problem.strerror or str(problem)) from problem
    except (ValueError, RecursionError) as problem:
        raise _unreadable(path, f"it is not JSON: {problem}") from problem
    try:
        return _script(script)
    except ValueError as problem:
        raise InvalidInput(
            f"{path} is not a fault script",
            code="MN-0161",
            reason=str(problem),
            hint="docs/testing.md lists the faults and their keys",
        ) from problem


def _unreadable(path: object, reason: str) -> InvalidInput:
    return InvalidInput(
        f"the fault script {path} cannot be read",
        code="MN-0160",
        reason=reason,
        hint='for example {"faults": [{"fault": "status", "status": 529, "to": 3}]}',
    )


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the key {key!r} is there twice")
    return dict(pairs)


def _script(script: object) -> FaultScript:
    if not isinstance(script, dict):
        raise ValueError("a JSON object is due")
    _only(script, {"seed", "faults"}, "")
    seed, faults = script.get("seed", 0), script.get("faults")
    if not _is_whole(seed):
        raise ValueError("seed: a whole number is due")
    if not isinstance(faults, list) or not faults:
        raise ValueError("faults: a list with at least one fault is due")
    return FaultScript([_entry(entry, f"faults.{number}") for number, entry in enumerate(faults)], seed)


_Check = tuple[Callable[[object], bool], str]


def _is_whole(value: object, lowest: int | None = None) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and (lowest is None or value >= lowest)


def _is_number(value: object, highest: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= highest


def _one_of(*values: object) -> _Check:
    return lambda value: value in values and not isinstance(value, bool), f"one of {', '.join(map(str, values))} is due"


_TEXT: _Check = (lambda value: isinstance(value, str) and bool(value), "a text is due")
_COUNT: _Check = (lambda value: _is_whole(value, 1), "a whole number of at least 1 is due")
_FROM_ZERO: _Check = (lambda value: _is_whole(value, 0), "a whole number of at least 0 is due")
_WHOLE: _Check = (_is_whole, "a whole number is due")
_SECONDS: _Check = (lambda value: _is_number(value, 10**9), "seconds are due, from 0 to 1000000000")

_WHEN_KEYS: Mapping[str, _Check] = {
    "path": _one_of(_MESSAGES, f"{_MESSAGES}/count_tokens"),
    "role": _one_of(*dict.fromkeys(role for role, _ in model.PURPOSES)),
    "phase": _one_of(*dict.fromkeys(phase for _, phase in model.PURPOSES)),
    "contains": _TEXT,
    "nth": _COUNT,
    "from": _COUNT,
    "to": _COUNT,
    "probability": (lambda value: _is_number(value, 1), "a number from 0 to 1 is due"),
}
_FAULT_KEYS: Mapping[str, Mapping[str, _Check]] = {
    "status": {
        "status": _one_of(*_STATUS_TYPES),
        "message": _TEXT,
        "retry_after": _SECONDS,
        "reset_after": _SECONDS,
    },
    "stream_error": {
        "error_type": _one_of(*dict.fromkeys(_STATUS_TYPES.values())),
        "message": _TEXT,
        "after_events": _FROM_ZERO,
    },
    "malformed": {"after_events": _FROM_ZERO},
    "stall": {"after_bytes": _WHOLE},
    "cut": {"after_bytes": _WHOLE, "ending": _one_of("close", "reset", "clean")},
    "slow": {"bytes_per_second": _COUNT},
    "hang": {},
    "reset": {},
    "page": {},
    "refusal": {},
    "max_tokens": {},
    "context_window_exceeded": {},
}
"""What can go wrong, and which keys say how."""


def _entry(entry: object, place: str) -> tuple[_When, Fault]:
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: a JSON object is due")
    kind = entry.get("fault")
    if not isinstance(kind, str) or kind not in _FAULT_KEYS:
        raise ValueError(f"{place}.fault: one of {', '.join(_FAULT_KEYS)} is due")
    how = _FAULT_KEYS[kind]
    _only(entry, {"fault", *how, *_WHEN_KEYS}, f"{place}.")
    for key, value in entry.items():
        is_right, wanted = {**how, **_WHEN_KEYS}.get(key, _TEXT)
        if not is_right(value):
            raise ValueError(f"{place}.{key}: {wanted}")
    if kind == "status" and "status" not in entry:
        raise ValueError(f"{place}.status: this key is missing")
    if "nth" in entry and entry.keys() & {"from", "to"}:
        raise ValueError(f"{place}.nth: it excludes from and to")
    if "to" in entry and entry.get("from", 1) > entry["to"]:
        raise ValueError(f"{place}.to: it is less than from")
    when = {key: entry[key] for key in entry.keys() & {"path", "role", "phase", "contains", "probability"}}
    first: int = entry["nth"] if "nth" in entry else entry.get("from", 1)
    last = entry.get("nth", entry.get("to"))
    return _When(first=first, last=last, **when), Fault(kind, **{key: entry[key] for key in entry.keys() & how.keys()})


def _only(entry: Mapping[str, object], known: set[str], place: str) -> None:
    for key in entry:
        if key not in known:
            raise ValueError(f"{place}{key}: unknown key; known are {', '.join(sorted(known))}")
