"""Upcalls over a journal that outlives the claim, with a power cut wherever a test wants one."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from collections.abc import Callable
from typing import Any

from mnemosyne.errors import Fenced
from pydantic import JsonValue

__all__ = ["MemoryJournal", "PowerCut"]


class PowerCut(BaseException):
    """The process is gone: nothing catches it and nothing is recorded after it."""


class MemoryJournal:
    """The runtime's side of the upcalls.

    Attributes:
        cut_after: Raises :class:`PowerCut` after this many committed upcalls; None never does.
        epoch: Calls of another epoch are refused.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []
        self.progress: list[str] = []
        self.breaker: list[tuple[bool, dict[str, Any]]] = []
        self.artifacts: dict[str, bytes] = {}
        self.cut_after: int | None = None
        self.epoch = 1
        self.on_call: Callable[[dict[str, Any]], None] = lambda request: None
        self._count = 0

    def next_claim(self) -> int:
        """Start counting anew under the next epoch and return it; what was started is unknown from now on."""
        self._count, self.cut_after = 0, None
        self.epoch += 1
        for record in self.records:
            if record["state"] == "started":
                record["state"] = "unknown"
        return self.epoch

    async def call(self, request: dict[str, JsonValue]) -> JsonValue:
        if request["epoch"] != self.epoch:
            raise Fenced("another claim took this item over")
        self.on_call(request)
        answer = self._commit(json.loads(json.dumps(request)))  # what is kept shares nothing with the caller
        self._count += 1
        if self.cut_after is not None and self._count >= self.cut_after:
            raise PowerCut
        return answer

    def notify(self, request: dict[str, JsonValue]) -> None:
        self.progress.append(str(request.get("message", "")))

    def _commit(self, request: dict[str, Any]) -> JsonValue:
        self.calls.append(request)
        match request["op"]:
            case "journal":
                return [copy.deepcopy(record) for record in self.records if record["attempt"] == request["attempt"]]
            case "step_start":
                number = len(self.records) + 1
                kept = {key: request[key] for key in ("name", "kind", "input_sha256", "detail", "attempt")}
                self.records.append({"number": number, "state": "started", "output": None, "error": None, **kept})
                return {"number": number}
            case "step_finish":
                self.records[request["number"] - 1] |= {"state": "finished", "output": request["output"]}
            case "step_fail":
                said = {"error": request["error"], "failure": request["detail"]}
                self.records[request["number"] - 1] |= {"state": "failed", **said}
            case "breaker":
                self.breaker.append((request["opened"], request["data"]))
            case "reserve":
                return {"reservation": "r1"}
            case "artifact":
                content = base64.b64decode(request["content"])
                self.artifacts[request["name"]] = content
                digest = hashlib.sha256(content).hexdigest()
                return {"name": request["name"], "sha256": digest, "size": len(content)}
        return None

    def states(self, kind: str) -> list[str]:
        return [record["state"] for record in self.records if record["kind"] == kind]
