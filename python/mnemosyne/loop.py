"""The loop thread: where all in-process agents live.

Rust calls :func:`run` on a thread of its own, attached for life inside one ``spawn_blocking`` call (GIL-1), and sends
messages: start an agent, stop it, work, cancel. Every item is one task with a context of its own. What a task raises is
an outcome, never the end of the loop: ``SystemExit`` from an agent, or from a task that it started, is its own error.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import itertools
import traceback
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from pydantic import JsonValue

from mnemosyne import _core
from mnemosyne.agents.agent_factory import make_agent
from mnemosyne.agents.context import AgentContext, LocalUpcalls, RunInfo
from mnemosyne.agents.stages import Services, run_item
from mnemosyne.errors import (
    AgentUnavailable,
    BudgetExceeded,
    EnvironmentProblem,
    Fenced,
    InvalidInput,
    MnemosyneError,
    ModelError,
    ModelRefused,
)
from mnemosyne.mailbox import Mailbox, keep_exception
from mnemosyne.models import Acceptance, PlanTask, WorkItem

if TYPE_CHECKING:
    from mnemosyne.agents.base_agent import AgentExecutionMixin
    from mnemosyne.workspace import Workspace

__all__ = ["hide", "register", "run"]

Json = dict[str, JsonValue]
_Kept = TypeVar("_Kept")
_Result = TypeVar("_Result")

HEARTBEAT_SECONDS = 5.0
CLOSE_SECONDS = 2.0  # for an agent's own close()
_TRACEBACK_LENGTH = 8_000  # characters that travel with an error; the whole exception stays in Python

_numbers = itertools.count(1)
_registered: dict[str, type] = {}  # kept for good: an agent may be made again as long as its tree lives
_hidden: dict[str, str] = {}


def register(agent: type) -> str:
    """Keep a class on this side of the border; return the key that Rust knows it by."""
    return _key_of(agent, _registered, f"{agent.__module__}:{agent.__qualname__}#")


def hide(secret: str) -> Json:
    """Keep a secret on this side of the border; return what stands for it in a configuration (SECRET-1)."""
    return {"$secret": _key_of(secret, _hidden, "secret-")}


def _key_of(value: _Kept, kept: dict[str, _Kept], prefix: str) -> str:
    """Return the key under which ``value`` is kept; the same one each time, so that nothing is kept twice."""
    for key, known in list(kept.items()):
        if known == value:
            return key
    key = f"{prefix}{next(_numbers)}"
    kept[key] = value
    return key


def _revealed(config: Json) -> Json:
    shown: Json = {}
    for key, value in config.items():
        name = value.get("$secret") if isinstance(value, dict) else None
        shown[key] = _hidden.get(name) if isinstance(name, str) else value
    return shown


@dataclass(frozen=True)
class _Host:
    """A tree as the loop sees it."""

    id: int
    boot: str
    directory: Path | None


_Key = tuple[int, str, int]  # host, agent, generation


class _Upcalls:
    """The way of one item's context back into Rust; see ``rust/bridge/src/upcall.rs``."""

    def __init__(self, side: _core.AgentLoop, mailbox: Mailbox, host: int) -> None:
        self._side, self._mailbox, self._host = side, mailbox, host

    async def call(self, request: Json) -> JsonValue:
        answer = await self._mailbox.call(lambda _port, ticket: self._side.upcall(ticket, self._host, request))
        return cast(JsonValue, answer)

    def notify(self, request: Json) -> None:
        self._side.notify(self._host, request)


class _Loop:
    """The agents of this process and what they work on."""

    def __init__(self, side: _core.AgentLoop) -> None:
        self._loop = asyncio.get_running_loop()
        self._side = side
        self._mailbox = Mailbox(self._loop, side.port, self._receive)
        self._agents: dict[_Key, tuple[AgentExecutionMixin, _Host]] = {}
        self._work: dict[int, asyncio.Task[Json]] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._outcomes: list[tuple[int, JsonValue]] = []
        self._services: Services | None = None
        self._ended = asyncio.Event()

    async def live(self) -> None:
        """Beat until Rust says that it is over; then cancel, close, and leave."""
        while not self._ended.is_set():
            self._side.heartbeat()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), HEARTBEAT_SECONDS)
        tasks: list[asyncio.Task[Json] | asyncio.Task[None]] = [*self._work.values(), *self._others]
        for task in tasks:
            task.cancel("the loop ends")
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
        await asyncio.gather(*(_close(agent) for agent, _ in self._agents.values()))
        self._flush()
        self._mailbox.close()

    def _receive(self, kind: str, number: int, payload: object) -> None:
        match kind:
            case "work":
                task = self._task(self._perform(cast(Json, payload)))
                self._work[number] = task
                task.add_done_callback(lambda done: self._performed(number, done))
            case "cancel":
                working = self._work.get(number)
                if working is not None:
                    working.cancel(str(payload))
            case "start":
                self._aside(self._start(number, cast(Json, payload)))
            case "stop":
                self._aside(self._stop(number, cast(Json, payload)))
            case _:
                self._ended.set()

    def _task(self, work: Coroutine[object, object, _Result]) -> asyncio.Task[_Result]:
        # A context of its own: what one item sets, another must not see.
        return self._loop.create_task(work, context=contextvars.Context())

    def _aside(self, work: Coroutine[object, object, None]) -> None:
        task = self._task(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def _start(self, ticket: int, start: Json) -> None:
        try:
            host = cast(Json, start["host"])
            directory = host["directory"]
            known = _Host(cast(int, host["id"]), str(host["boot"]), Path(str(directory)) if directory else None)
            source = cast(Json, start["source"])
            cls = _registered[str(source["registered"])] if "registered" in source else str(source["import"])
            agent = make_agent(cls, _revealed(cast(Json, start["config"])))
            self._agents[(known.id, str(start["agent_id"]), cast(int, start["generation"]))] = agent, known
        except BaseException as error:
            permanent = isinstance(error, AgentUnavailable | InvalidInput | KeyError)
            self._side.started(ticket, _described(error, permanent=permanent))
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            self._side.started(ticket, None)

    async def _stop(self, ticket: int, stop: Json) -> None:
        key = (cast(int, stop["host"]), str(stop["agent_id"]), cast(int, stop["generation"]))
        found = self._agents.pop(key, None)
        if found is not None:
            await _close(found[0])
        self._side.started(ticket, None)

    async def _perform(self, assignment: Json) -> Json:
        try:
            return await self._outcome(assignment)
        except BaseException as error:  # nothing that an agent raises may end the loop
            return _failure(error, claimed=bool(assignment["claimed"]))

    def _performed(self, number: int, task: asyncio.Task[Json]) -> None:
        self._work.pop(number, None)
        # Only a task that was cancelled before its first step ends as cancelled.
        self._outcomes.append((number, {"kind": "cancelled"} if task.cancelled() else task.result()))
        if len(self._outcomes) == 1:
            self._loop.call_soon(self._flush)

    async def _outcome(self, assignment: Json) -> Json:
        host = cast(int, assignment["host"])
        key = (host, str(assignment["agent_id"]), cast(int, assignment["generation"]))
        found = self._agents.get(key)
        if found is None:
            raise AgentUnavailable(f"{key[1]} of generation {key[2]} is not here")
        agent, known = found
        claimed = bool(assignment["claimed"])
        upcalls = _Upcalls(self._side, self._mailbox, host) if claimed else LocalUpcalls()
        context = _context(assignment, upcalls)
        result = await run_item(agent, context, self._services_of(known))
        return {"kind": "result", "result": result}

    def _services_of(self, host: _Host) -> Services:
        from mnemosyne import guard

        if host.directory is not None:
            guard.configure(lock=guard_lock(host.directory, host.boot))  # does not change a guard that runs
        if self._services is None:
            self._services = Services(guard=guard.shared, workspace_for=_workspace)
        return self._services

    def _flush(self) -> None:
        """Hand over all outcomes of this tick in one call."""
        outcomes, self._outcomes = self._outcomes, []
        if outcomes:
            self._side.completed(outcomes)


def guard_lock(directory: Path, boot: str) -> Path:
    """The lock that the guard of a boot holds until its last child is gone; a resume waits for it (KILL-2)."""
    return directory / "boots" / f"{boot}.guard"


def _workspace(context: AgentContext) -> Workspace:
    from mnemosyne import guard
    from mnemosyne.workspace import Workspace

    if context.run is None:
        raise InvalidInput(f"item {context.item.id} belongs to no run and so has no workspace", code="MN-0117")
    run = context.run
    return Workspace(workspace=run.workspace, directory=run.directory, guard=guard.shared(), tag=context.item.id)


def _context(assignment: Json, upcalls: _Upcalls | LocalUpcalls) -> AgentContext:
    run, task = assignment.get("run"), assignment.get("task")
    info = None
    if isinstance(run, dict) and run.get("directory"):
        info = RunInfo(
            id=str(run["id"]),
            workspace=Path(str(run["workspace"])),
            directory=Path(str(run["directory"])),
            prompt=cast(str | None, run["prompt"]),
            options=cast(Json, run["options"]),
        )
    return AgentContext(
        WorkItem.model_validate(assignment["item"]),
        epoch=cast(int, assignment["epoch"]),
        kind=str(assignment["kind"]),
        agent_id=str(assignment["agent_id"]),
        generation=cast(int, assignment["generation"]),
        run=info,
        task=PlanTask.model_validate(task) if task else None,
        setup=tuple(cast(list[str], assignment.get("setup") or [])),
        accepted=tuple(map(Acceptance.model_validate, cast(list[Json], assignment.get("accepted") or []))),
        upcalls=upcalls,
    )


async def _close(agent: AgentExecutionMixin) -> None:
    close = getattr(agent, "close", None)
    if close is None:
        return
    # An agent that cannot close must not keep the loop from ending.
    with contextlib.suppress(Exception, SystemExit):
        await asyncio.wait_for(close(), CLOSE_SECONDS)


def _failure(error: BaseException, *, claimed: bool) -> Json:
    """Say by its class whom an exception is charged to."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        return {"kind": "cancelled"}  # one that nobody asked for is the agent's own error
    if isinstance(error, Fenced):
        return {"kind": "fenced"}
    if isinstance(error, ModelRefused):
        return {"kind": "invalid", "problem": _problem("model", error)}
    if isinstance(error, ModelError):
        problem = _problem("model", error)
        return {"kind": "model", "problem": problem, "fatal": error.fatal, "retry_after": error.retry_after}
    if isinstance(error, BudgetExceeded):
        return {"kind": "budget", "problem": _problem("budget", error)}
    if isinstance(error, EnvironmentProblem):
        return {"kind": "environment", "problem": _problem("environment", error)}
    if isinstance(error, InvalidInput):
        return {"kind": "invalid", "problem": _problem("invalid_input", error)}
    # The caller of direct work gets the exception itself; nobody waits for that of a claim.
    return {"kind": "raised", "error": _described(error, permanent=False, keep=not claimed)}


def _problem(kind: str, error: MnemosyneError) -> Json:
    return {"kind": kind, **{key: _encodable(text) for key, text in error.to_dict().items()}}


def _encodable(text: str) -> str:
    """Without lone surrogates, which a file name that is no UTF-8 brings along and Rust cannot take."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _described(error: BaseException, *, permanent: bool, keep: bool = False) -> Json:
    try:
        text = str(error)
    except Exception:  # a __str__ of the agent's own
        text = "it has no text"
    if isinstance(error, MnemosyneError) and error.reason:
        text = f"{text}: {error.reason}"
    lines = "".join(traceback.format_exception(error))
    return {
        "permanent": permanent,
        "type_name": type(error).__name__,
        "message": _encodable(text[:_TRACEBACK_LENGTH]),
        "traceback": _encodable(lines[-_TRACEBACK_LENGTH:]),
        "token": keep_exception(error) if keep else None,
    }


def run(side: _core.AgentLoop) -> None:
    """Live on this thread until Rust says that it is over."""
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        living = loop.create_task(_main(side))
        while not living.done():
            # asyncio lets these two out of the loop, whichever task raised them; the task has its error all the same.
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                loop.run_until_complete(living)


async def _main(side: _core.AgentLoop) -> None:
    await _Loop(side).live()


atexit.register(_core.stop_loop)
