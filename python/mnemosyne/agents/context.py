"""What an agent can ask of the runtime while it works: steps, budget, artifacts, progress.

Every upcall carries the item and the epoch of the claim and returns after the commit. A claim that was taken over
gets ``Fenced`` from its next upcall, which is before its next request or tool (FENCE-1).

A step is found in the journal by its name, the hash of its input, and its place among the calls that share both. A
finished one is replayed. One that was started and never finished is asked again under the next number; only a tool
is not, because a command must never run twice for one call (ONCE-1): it is described instead.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

from mnemosyne.canonical import canonical_json, sha256_json
from mnemosyne.errors import AgentError, Fenced, MnemosyneError
from mnemosyne.logging_config import get_logger
from mnemosyne.metrics import get_metrics_collector
from mnemosyne.models import Acceptance, ArtifactRef, PlanTask, Reservation, Usage, WorkItem
from mnemosyne.redaction import redact

__all__ = ["AgentContext", "LocalUpcalls", "ProjectFiles", "RunInfo", "ToolSet", "Upcalls"]

_log = get_logger("mnemosyne.agents")

_ERROR_LENGTH = 4000  # characters of an error that the journal keeps
_DIRECT_PATIENCE = 30.0  # seconds: nobody can park direct work, and its caller waits
_PROGRESS_SECONDS = 1.0  # between two words of progress about what streams: its age is read in seconds
_MARGIN = 30.0  # seconds before the end of a claim, in which it is given back rather than timed out


class Upcalls(Protocol):
    """The way to the runtime: the same requests go over a function call or a socket."""

    async def call(self, request: dict[str, JsonValue]) -> JsonValue:
        """Do it, and return after the commit."""

    def notify(self, request: dict[str, JsonValue]) -> None:
        """Say it, without waiting and without an answer; from any thread."""


class ProjectFiles(Protocol):
    """The accepted files of a run, to be read and not written."""

    async def list_files(self) -> list[str]:
        """Return all paths, relative and sorted."""

    async def read_files(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Return the contents of those that exist; all at once, because each reading starts a process."""


class ToolOutcome(Protocol):
    """What a tool gave."""

    @property
    def content(self) -> str: ...
    @property
    def is_error(self) -> bool: ...


class ToolSet(Protocol):
    """The tools that work in the attempt's tree."""

    def definitions(self) -> list[dict[str, JsonValue]]: ...
    async def run(self, name: str, input: dict[str, JsonValue]) -> ToolOutcome: ...
    async def describe_interrupted(self, name: str, input: dict[str, JsonValue]) -> str: ...


@dataclass(frozen=True)
class RunInfo:
    """The run an item belongs to."""

    id: str
    workspace: Path
    """The user's folder."""
    directory: Path
    """The run's own folder in the state directory: shadow repository and trees."""
    prompt: str | None
    options: Mapping[str, JsonValue]


@dataclass
class _Records:
    """What earlier claims of this attempt left in the journal for one name and input."""

    finished: deque[JsonValue] = field(default_factory=deque)
    """Outputs in the order of their numbers; each is replayed once."""
    newest_unfinished: bool = False
    """The newest record was started and has no output; cleared when this claim has dealt with it."""


class LocalUpcalls:
    """The upcalls of direct work, which has no store: nothing is kept, so nothing can be replayed."""

    def __init__(self) -> None:
        self._number = 0

    async def call(self, request: dict[str, JsonValue]) -> JsonValue:
        match request["op"]:
            case "journal":
                return []
            case "step_start":
                self._number += 1
                return {"number": self._number}
            case "reserve":
                return {"reservation": "direct"}
            case "artifact":
                raise AgentError(
                    "an artifact cannot be kept here",
                    code="MN-0311",
                    reason="direct work (send_work) has no store",
                    hint="submit the item with Orchestra.submit_work, or return the content in data",
                )
            case _:
                return None

    def notify(self, request: dict[str, JsonValue]) -> None:
        pass


class AgentContext:
    """The work at hand and the upcalls for it. An agent finds its own as ``self.context``.

    Attributes:
        item: The work item.
        attempt: Rises with every rejection; a new attempt has a new journal.
        epoch: The claim; rises with every claim, and fences.
        tree: The attempt's own tree, where there is one.
        kind: What the harness does around the agent, see ``mnemosyne.agents.stages``.
        run: The run, or None for work that belongs to none.
        task: The plan's task that the item is part of.
        setup: The plan's setup commands.
        accepted: Acceptance of all tasks accepted so far in this run, for the joined gate.
        depth_limit: How many agents deep the item may be handed on; None is no limit.
        config: Of the agent that the host gave the item to; what it makes with ``create_agent`` inherits the server.
        run_blocking: Runs a plain function beside the loop; set by the host, which bounds how many run at a time.
        files: The run's accepted files, set by the harness for ``optimize``.
        tools: The tools of the tree, set by the harness where there is a tree.
    """

    def __init__(
        self,
        item: WorkItem,
        *,
        epoch: int = 0,
        kind: str = "work",
        agent_id: str = "",
        generation: int = 1,
        run: RunInfo | None = None,
        task: PlanTask | None = None,
        setup: tuple[str, ...] = (),
        accepted: tuple[Acceptance, ...] = (),
        depth_limit: int | None = None,
        upcalls: Upcalls | None = None,
    ) -> None:
        self.item = item
        self.attempt = item.attempt
        self.epoch = epoch
        self.tree: Path | None = None
        self.kind = kind
        self.agent_id = agent_id
        self.generation = generation
        self.run = run
        self.task = task
        self.setup = setup
        self.accepted = accepted
        self.depth_limit = depth_limit
        self.config: Mapping[str, JsonValue] = {}
        self.run_blocking: Callable[[Callable[[], object]], Awaitable[object]] = asyncio.to_thread
        self.files: ProjectFiles | None = None
        self.tools: ToolSet | None = None
        self._upcalls = upcalls or LocalUpcalls()
        self._journal: dict[tuple[str, str], _Records] | None = None
        self._replayable = 0
        self._loading = asyncio.Lock()
        self._margin = min(_MARGIN, item.timeout_seconds / 10)
        self._ends = time.monotonic() + item.timeout_seconds
        self._progress_due = 0.0

    def patience(self, waited: float) -> float:
        """Return for how many seconds more a turn that has ``waited`` may wait for its server.

        A claim that waits into its time limit would be an error of its agent, which has done nothing wrong.
        """
        left = self._ends - time.monotonic() - self._margin
        return min(left, _DIRECT_PATIENCE - waited) if isinstance(self._upcalls, LocalUpcalls) else left

    async def step(
        self, name: str, function: Callable[[], Awaitable[JsonValue]], *, input: JsonValue = None
    ) -> JsonValue:
        """Run ``function`` once and keep what it returns; on a resumed attempt return that instead of running it.

        Args:
            name: Says what is done; together with ``input`` it is how the step is found again.
            input: What the outcome depends on. Leave ports, keys, times and temporary paths out of it.

        Raises:
            Fenced: Another claim has taken the item over.
            AgentError: The output is not JSON, or holds text that is not UTF-8 (MN-0310).
        """

        async def run() -> tuple[JsonValue, Usage | None]:
            output = await function()
            try:
                # What a replay would give: a tuple, say, comes back as a list, and must the first time too.
                normal: JsonValue = json.loads(canonical_json(output).decode("utf-8"))
            except (TypeError, ValueError) as error:
                raise AgentError(
                    f"the output of step {name!r} is not JSON",
                    code="MN-0310",
                    reason=str(error),
                    hint="return None, numbers, UTF-8 text, and lists and dicts of these",
                ) from error
            return normal, None

        return await self.journaled(name, kind="step", input=input, function=run)

    async def journaled(
        self,
        name: str,
        *,
        kind: str,
        input: JsonValue,
        function: Callable[[], Awaitable[tuple[JsonValue, Usage | None]]],
        detail: dict[str, JsonValue] | None = None,
        reserve: dict[str, JsonValue] | None = None,
        interrupted: Callable[[], Awaitable[JsonValue]] | None = None,
        admit: Callable[[], Awaitable[None]] | None = None,
    ) -> JsonValue:
        """Do one step of any kind: ``started`` is committed before ``function`` runs, ``finished`` before it returns.

        An exception is recorded as a failed step and raised again; what it is known to have spent is read from its
        attribute ``usage`` (None: unknown, the reservation stays charged), what its event says of it from ``detail``. A
        cancelled step stays started.

        Args:
            kind: ``step``, ``turn`` or ``tool``.
            function: Returns the output and its usage.
            detail: Goes into the ``step_started`` event.
            reserve: ``{"tokens", "usd"}``, committed together with ``started``.
            interrupted: Given for what must not run twice: where an earlier claim started this step and did not finish
                it, its answer is recorded as the output, and ``function`` is not run.
            admit: Awaited before the step starts, and not at all where it is replayed: what has to wait for its turn
                must have reserved nothing yet.
        """
        digest = sha256_json(input)
        records = (await self._records()).setdefault((name, digest), _Records())
        if records.finished:
            self._replayable -= 1
            return records.finished.popleft()
        if admit is not None:
            await admit()
        number = await self._call(
            "step_start",
            attempt=self.attempt,
            name=name,
            kind=kind,
            input_sha256=digest,
            detail=detail,
            reserve=reserve,
        )
        assert isinstance(number, dict)
        was_interrupted, records.newest_unfinished = records.newest_unfinished, False
        mine: dict[str, JsonValue] = {"attempt": self.attempt, "number": number["number"]}
        what = kind if kind == name else f"{kind} {name}"
        try:
            if was_interrupted and interrupted is not None:
                output, usage = await interrupted(), None
            else:
                output, usage = await function()
        except Fenced:
            raise
        except Exception as error:
            said = getattr(error, "detail", None)
            await self._call("step_fail", **mine, error=_text(error), usage=_spent(error), detail=said)
            self._count(getattr(error, "usage", None))
            why = f": {error.reason}" if isinstance(error, MnemosyneError) and error.reason else ""
            _log.warning("%s (step %s) failed: %s%s", what, number["number"], _text(error), why)
            raise
        refused = _tool_error(kind, output)
        await self._call("step_finish", **mine, output=output, usage=_dumped(usage), detail=refused)
        self._count(usage)
        used = f", {usage.input_tokens} tokens in, {usage.output_tokens} out" if usage is not None else ""
        if refused is None:
            _log.info("%s (step %s) done%s", what, number["number"], used)
        else:
            said = str(output.get("content"))[:_ERROR_LENGTH] if isinstance(output, dict) else ""
            _log.warning("%s (step %s) was refused, or failed: %s", what, number["number"], said)
        return output

    async def recorded(self, name: str, *, input: JsonValue) -> bool:
        """Say whether the next such step would be replayed: an earlier claim finished it."""
        records = await self._records()
        if not self._replayable:  # the usual case: nothing has to be hashed
            return False
        found = records.get((name, sha256_json(input)))
        return found is not None and bool(found.finished)

    async def breaker(self, opened: bool, data: dict[str, JsonValue]) -> None:
        """Store that the breaker of a model opened or closed; the event belongs to the process and to no run."""
        await self._call("breaker", opened=opened, data=data)

    async def reserve(self, *, tokens: int, usd: float | None = None) -> Reservation:
        """Set tokens and money aside before spending them.

        Settle it soon: as long as it is open it counts as spent, and nobody waits for it.

        Args:
            tokens: Of any kind.
            usd: Where dollars are limited it is due; 0 for what costs nothing.

        Raises:
            BudgetExceeded: There is not that much left; nothing may be spent.
        """
        answer = await self._call("reserve", tokens=tokens, usd=usd)
        assert isinstance(answer, dict)
        return Reservation(id=str(answer["reservation"]), tokens=tokens, usd=usd)

    async def settle(self, reservation: Reservation, usage: Usage) -> None:
        """Charge what was really spent and give the rest of the reservation back."""
        await self._call("settle", reservation=reservation.id, usage=_dumped(usage))
        self._count(usage)

    async def artifact(self, name: str, content: bytes | str) -> ArtifactRef:
        """Store ``content`` under ``name``; text is stored as UTF-8."""
        data = content.encode("utf-8") if isinstance(content, str) else content
        answer = await self._call("artifact", name=name, content=base64.b64encode(data).decode("ascii"))
        return ArtifactRef.model_validate(answer)

    def progress(self, message: str, fraction: float | None = None) -> None:
        """Say what is going on, for whoever watches; it is not stored, and never blocks."""
        self._upcalls.notify(
            {
                "op": "progress",
                "item": self.item.id,
                "epoch": self.epoch,
                "message": redact(message),
                "fraction": fraction,
            }
        )

    def progressed(self) -> None:
        """Say that more of what the work waits for has come: some bytes, some tokens.

        For every piece of a stream, however many there are: it is told once a second at most. Work that says nothing
        for two minutes is shown as slow.
        """
        now = time.monotonic()
        if now >= self._progress_due:
            self._progress_due = now + _PROGRESS_SECONDS
            self._upcalls.notify({"op": "progress", "item": self.item.id, "epoch": self.epoch})

    def _count(self, usage: object) -> None:
        """Count what the store has taken, and not before: the two views agree."""
        if isinstance(usage, Usage):
            get_metrics_collector().record_usage(self.item.id, usage)

    async def _records(self) -> dict[tuple[str, str], _Records]:
        async with self._loading:
            if self._journal is None:
                listed = await self._call("journal", attempt=self.attempt)
                assert isinstance(listed, list)
                self._journal = _index(listed)
                self._replayable = sum(len(records.finished) for records in self._journal.values())
        return self._journal

    async def _call(self, operation: str, **fields: JsonValue) -> JsonValue:
        return await self._upcalls.call({"op": operation, "item": self.item.id, "epoch": self.epoch, **fields})


def _index(listed: list[JsonValue]) -> dict[tuple[str, str], _Records]:
    journal: dict[tuple[str, str], _Records] = {}
    for record in listed:
        assert isinstance(record, dict)
        records = journal.setdefault((str(record["name"]), str(record["input_sha256"])), _Records())
        if record["state"] == "finished":
            records.finished.append(record.get("output"))
        records.newest_unfinished = record["state"] != "finished"
    return journal


def _text(error: Exception) -> str:
    # A file name can hold bytes that are not UTF-8; the journal cannot.
    said = redact(f"{type(error).__name__}: {error}"[:_ERROR_LENGTH])
    return said.encode("utf-8", "replace").decode("utf-8")


def _tool_error(kind: str, output: JsonValue) -> JsonValue:
    if kind != "tool" or not isinstance(output, dict) or output.get("is_error") is not True:
        return None
    get_metrics_collector().count_retry("tool_error")
    return {"class": "tool_error"}


def _spent(error: Exception) -> JsonValue:
    usage = getattr(error, "usage", None)
    return _dumped(usage) if isinstance(usage, Usage) else None


def _dumped(usage: Usage | None) -> JsonValue:
    dumped: JsonValue = usage.model_dump(mode="json") if usage is not None else None
    return dumped
