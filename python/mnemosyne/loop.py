"""The loop thread: where all in-process agents live.

Rust calls ``run`` on a thread of its own, attached for life inside one ``spawn_blocking`` call (GIL-1), and sends
messages: start an agent, stop it, work, cancel. What one item does to its task or its context, no other sees: an item
that waits has both for itself, and those that end at once share them only for as long as none has left a mark. What a
task raises is an outcome, never the end of the loop: ``SystemExit`` from an agent, or from a task that it started, is
its own error.

What only harnessed work needs (pydantic, the harness, the SDK) is imported when the first of it comes: a process that
begins with a simple agent must not wait for it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import faulthandler
import functools
import inspect
import itertools
import logging
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import getweakrefcount

from mnemosyne import _core
from mnemosyne.agents.agent_factory import make_agent
from mnemosyne.agents.base_agent import blamed, check_result, current_context, uncounted, work_at_hand
from mnemosyne.eager import new_event_loop, start_task, task_options
from mnemosyne.errors import (
    AgentUnavailable,
    BudgetExceeded,
    EnvironmentProblem,
    Fenced,
    InvalidInput,
    MnemosyneError,
    ModelError,
    ModelParked,
    ModelRefused,
)
from mnemosyne.mailbox import Mailbox, keep_exception
from mnemosyne.redaction import hide_secret, redact

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import JsonValue

    from mnemosyne.agents.base_agent import AgentExecutionMixin
    from mnemosyne.agents.claude_agent import ClaudeAgent
    from mnemosyne.agents.context import AgentContext
    from mnemosyne.agents.stages import Services
    from mnemosyne.metrics import MetricsCollector
    from mnemosyne.workspace import Workspace

    Json = dict[str, JsonValue]

__all__ = ["hide", "register", "run"]

_Kept = TypeVar("_Kept")

BEAT_SECONDS = 1.0
LAG_LIMIT_SECONDS = (
    14.5  # a beat so late: all stacks are written, the loop is suspect; twice as late: it is left behind
)
CLOSE_SECONDS = 2.0  # for cancelled work, then for the agents' own close()
LEFT_SECONDS = 0.5  # for tasks that agents started and left
GRACE_SECONDS = 5.0  # for a plain function whose item was cancelled; the runtime abandons the item after the same time
_TRACEBACK_LENGTH = 8_000  # characters that travel with an error; the whole exception stays in Python

_numbers = itertools.count(1)
_registered: dict[str, type] = {}  # kept for good: an agent may be made again as long as its tree lives
_hidden: dict[str, str] = {}
_loops: dict[int, _Loop] = {}  # that live, by the number that Rust knows them by
_plain_calls: dict[int, _PlainCall] = {}  # that have not begun
_is_worker = False  # this process is an agent's own: nobody here asks for the exceptions that it raised


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
    """Return a configuration with its secrets; from now on this process says none of them."""
    shown: Json = {}
    for key, value in config.items():
        name = value.get("$secret") if isinstance(value, dict) else None
        shown[key] = _hidden.get(name) if isinstance(name, str) else value
        if (key == "api_key" or name is not None) and isinstance(secret := shown[key], str):
            hide_secret(secret)
    return shown


def _importable(source: Json) -> str:
    """Return the name by which another process finds the class.

    Raises:
        InvalidInput: There is none (MN-0380).
    """
    from mnemosyne import worker

    if "import" in source:
        return str(source["import"])
    return worker.importable_name(_registered[str(source["registered"])])


@dataclass(frozen=True)
class _Host:
    """A tree as the loop sees it."""

    id: int
    boot: str
    directory: str | None


@dataclass(frozen=True, slots=True)
class _Seat:
    """One generation of one agent."""

    agent: AgentExecutionMixin
    host: _Host
    agent_id: str
    generation: int
    name: str
    """Of its class, for errors."""
    alone: Callable[[dict[str, Any]], Awaitable[object]] | None
    """Where work outside a run needs nothing of the harness, the coroutine function that the agent is."""


def _marks(task: asyncio.Task[None] | None, context: Context) -> tuple[object, ...]:
    """Return all that an item which is over can have left behind on its task and in its context.

    Whoever still holds the task (a timer that would cancel it, a table of tasks) must not meet another item in it.
    """
    if task is None:
        return ()
    name, callbacks, cancels = task.get_name(), task._callbacks, task.cancelling()
    return sys.getrefcount(task), getweakrefcount(task), name, callbacks, cancels, len(context)


@dataclass(slots=True)
class _PlainCall:
    """A plain function on its way through the pool."""

    function: Callable[[], object]
    ended: asyncio.Future[None]
    value: object = None
    error: BaseException | None = None


class _Upcalls:
    """The way of one item's context back into Rust; see ``rust/bridge/src/upcall.rs``."""

    def __init__(self, side: _core.AgentLoop, mailbox: Mailbox, host: int) -> None:
        self._side, self._mailbox, self._host = side, mailbox, host

    async def call(self, request: Json) -> JsonValue:
        answer = await self._mailbox.call(lambda _port, ticket: self._side.upcall(ticket, self._host, request))
        return cast("JsonValue", answer)

    def notify(self, request: Json) -> None:
        self._side.notify(self._host, request)


class _Loop:
    """The agents of this process and what they work on."""

    def __init__(self, side: _core.AgentLoop, prepare: Callable[[], None] = lambda: None) -> None:
        self._loop = asyncio.get_running_loop()
        self._side = side
        self._prepare = prepare
        self._port = side.port
        self._mailbox = Mailbox(self._loop, side.port, self._read)
        self._seats: dict[int, _Seat] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by slot, of items that took more than their first step
        self._contexts: dict[int, AgentContext] = {}  # by slot; of work outside the harness whose agent asked for one
        self._assignments: dict[int, Json] = {}  # by slot; of claimed work outside the harness
        self._plain_calls: dict[int, _PlainCall] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._flush_is_due = False
        self._slot = 0  # of the direct work that was begun last
        self._goes_on = False  # whether its task may take what comes after it
        self._unmarked: tuple[object, ...] | None = None  # the marks of a task whose first item has done nothing yet
        self._services: Services | None = None
        self._ended = asyncio.Event()
        _loops[side.id] = self

    def begin_direct_work_in_rust(self) -> None:
        """Let the port begin direct work by itself where that is shorter; see ``rust/bridge/src/starter.rs``."""
        options = task_options(self._loop)
        if options is not None:
            # A copy of an empty context is an empty context, and takes a third of what the class does.
            self._port.begin_direct(self._direct, asyncio.Task, options, Context().copy)

    async def live(self) -> None:
        """Work until Rust says that it is over; then cancel, close, and leave."""
        self._beat(self._loop.time())
        while not self._ended.is_set():
            with contextlib.suppress(asyncio.CancelledError):  # an agent that cancels whatever it finds
                await self._ended.wait()
        tasks = [*self._tasks.values(), *self._others]
        for slot in list(self._tasks):
            self._cancel(slot, "the loop ends")
        for task in self._others:
            task.cancel("the loop ends")
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
        await asyncio.gather(*(_close(seat.agent) for seat in self._seats.values()))
        self._side.flush()
        self._mailbox.close()
        _loops.pop(self._side.id, None)

    def _beat(self, due: float) -> None:
        """Say that the loop goes on, and arm what writes all stacks should it not do so again in time."""
        now = self._loop.time()
        self._side.heartbeat(now - due, LAG_LIMIT_SECONDS)
        if not self._ended.is_set():
            _arm(BEAT_SECONDS + LAG_LIMIT_SECONDS)
            self._loop.call_later(BEAT_SECONDS, self._beat, now + BEAT_SECONDS)

    def slot_at_work(self) -> int | None:
        """Return the slot whose item holds the loop right now; called from another thread."""
        task = asyncio.current_task(self._loop)
        for slot, known in list(self._tasks.items()):
            if known is task:
                return slot
        # An eager task is at work before it is known; its frame is.
        coroutine: Any = task.get_coro() if task is not None else None
        if getattr(coroutine, "cr_code", None) in (_Loop._direct.__code__, _Loop._claimed.__code__):
            return cast("int | None", coroutine.cr_frame.f_locals.get("slot") if coroutine.cr_frame else None)
        return None

    async def run_blocking(self, function: Callable[[], object]) -> object:
        """Run a plain function in the pool, in a copy of this context. Cancelled before it began, it never begins.

        Raises:
            BaseException: What it raised.
        """
        call = _PlainCall(functools.partial(copy_context().run, function), self._loop.create_future())
        number = next(_numbers)
        _plain_calls[number] = self._plain_calls[number] = call
        self._side.run_plain(number)
        try:
            await asyncio.wait([call.ended])
        except asyncio.CancelledError:
            begun = _plain_calls.pop(number, None) is None
            if begun:  # it cannot be stopped: it may end by itself, for a while
                await asyncio.wait([call.ended], timeout=GRACE_SECONDS)
            if begun and not call.ended.done():
                self._side.leave_behind(number)
            raise
        finally:
            self._plain_calls.pop(number, None)
        if call.error is not None:
            raise call.error
        return call.value

    def _read(self) -> None:
        """Take one tick of messages; see ``rust/bridge/src/port.rs`` for what ends it."""
        # Whatever ends in here is handed back by its end.
        self._flush_is_due = True
        for kind, number, seat, payload in self._port:
            self._receive(kind, number, seat, payload)
        self._goes_on = False
        self._flush()

    def _receive(self, kind: str, number: int, seat: int, payload: Any) -> None:
        match kind:
            case "direct":
                context = Context()
                task = self._begin(number, self._direct(number, seat, payload, context), context)
                if task is not None:
                    self._waits(task)
            case "begun":
                self._waits(payload)
            case "unstarted":
                self._side.completed(number, _failure(payload, claimed=False))
            case "value" | "error":
                self._mailbox.answer(kind, number, payload)
            case "claimed":
                task = self._begin(number, self._claimed(number, seat, payload), Context())
                if task is not None:
                    self._tasks[number] = task
            case "unbegun":
                self._side.completed(number, {"kind": "cancelled"})
            case "cancel":
                self._cancel(number, str(payload))
            case "start":
                self.start(number, seat, payload)
            case "employ":
                self._aside(self._employ(number, seat, *payload))
            case "stop":
                self._aside(self._stop(number, seat))
            case "ran":
                self.ran(number)
            case "log":
                for record in payload:
                    _log(*record)
            case "undeliverable":
                self._undeliverable(number, *payload)
            case _:
                self._ended.set()

    def ran(self, number: int) -> None:
        """Tell whoever waits that a plain function has ended."""
        call = self._plain_calls.get(number)
        if call is not None and not call.ended.done():
            call.ended.set_result(None)

    def end(self) -> None:
        """Let ``live`` come to its end."""
        self._ended.set()

    def _waits(self, task: asyncio.Task[None]) -> None:
        """Know the task of direct work that goes on: from here on it does nothing but the item that it is at."""
        self._goes_on = False
        self._tasks[self._slot] = task

    def _begin(self, slot: int, work: Coroutine[object, object, None], context: Context) -> asyncio.Task[None] | None:
        """Start a task in a new context and do its first step; return it if that was not its last.

        Most items that take no time end in it, and are never scheduled at all.
        """
        try:
            task = start_task(work, self._loop, context)
        except BaseException as error:  # no memory, too deep a recursion: the item's failure, not the loop's
            work.close()
            self._side.completed(slot, _failure(error, claimed=False))
            return None
        return None if task.done() else task

    def _cancel(self, slot: int, reason: str) -> None:
        task = self._tasks.get(slot)  # none: it has ended; one that had not begun was withdrawn in the port
        if task is not None:
            task.cancel(reason)

    def _reported(self, slot: int) -> None:
        self._tasks.pop(slot, None)
        if self._contexts:
            self._contexts.pop(slot, None)
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Hand over all outcomes since the last time in one call."""
        self._flush_is_due = False
        self._side.flush()

    def _undeliverable(self, number: int, kind: str, reason: str) -> None:
        error = RuntimeError(f"a message of kind {kind!r} could not be delivered: {reason}")
        match kind:
            case "direct" | "claimed":
                self._side.completed(number, _failure(error, claimed=kind == "claimed"))
            case "start" | "stop":
                self._side.started(number, _described(error, permanent=False))
            case _:
                self._mailbox.answer("undeliverable", number, str(error))

    def _aside(self, work: Coroutine[object, object, None]) -> None:
        task = self._loop.create_task(work, context=Context())
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    def start(self, ticket: int, seat: int, start: Json) -> None:
        """Make an agent; answered by ``started``."""
        self._aside(self._start(ticket, seat, start))

    async def _start(self, ticket: int, seat: int, start: Json) -> None:
        try:
            host = cast("Json", start["host"])
            known = _Host(cast(int, host["id"]), str(host["boot"]), cast("str | None", host["directory"]))
            source = cast("Json", start["source"])
            cls = _registered[str(source["registered"])] if "registered" in source else str(source["import"])
            self._prepare()
            agent = make_agent(cls, _revealed(cast("Json", start["config"])))
            if _is_claude(agent):
                await cast("ClaudeAgent", agent).find_key()
            self._seats[seat] = _Seat(
                agent,
                known,
                str(start["agent_id"]),
                cast(int, start["generation"]),
                type(agent).__name__,
                None if _is_claude(agent) or not inspect.iscoroutinefunction(agent.execute_work) else uncounted(agent),
            )
        except BaseException as error:
            permanent = isinstance(error, AgentUnavailable | InvalidInput | EnvironmentProblem | KeyError)
            self._side.started(ticket, _described(error, permanent=permanent))
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            self._side.started(ticket, None)

    async def _employ(self, ticket: int, number: int, start: Json, ours: int, theirs: int) -> None:
        """Start a process for an agent; from then on its socket is Rust's, and only its end is told from here."""
        from mnemosyne import guard, worker

        try:
            host = cast("Json", start["host"])
            if host["directory"]:
                guard.configure(lock=guard_lock(str(host["directory"]), str(host["boot"])))
            known: Json = {
                **start,
                # Its own guard needs no lock: ours is held until the last of its processes is gone.
                "host": {"id": 0, "boot": host["boot"], "directory": None},
                "source": _importable(cast("Json", start["source"])),
                "config": _revealed(cast("Json", start["config"])),
            }
            employed = await worker.employ(guard.shared, ours, theirs, known)
        except BaseException as error:
            permanent = isinstance(error, AgentUnavailable | InvalidInput | EnvironmentProblem | KeyError)
            self._side.started(ticket, _described(error, permanent=permanent))
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        self._side.started(ticket, None, employed.pid)
        try:
            result = await employed.ended
        except EnvironmentProblem as error:  # the guard died, and took the process with it
            self._side.exited(number, None, str(error))
        else:
            self._side.exited(number, result.exit_code, redact(result.output))

    async def _stop(self, ticket: int, seat: int) -> None:
        found = self._seats.pop(seat, None)
        if found is not None:
            await _close(found.agent)
        self._side.started(ticket, None)

    def make_context(self, slot: int, seat: int) -> AgentContext:
        """Make the context of work outside the harness, from the item as it came: the agent may have changed its dict.

        Raises:
            LookupError: The work has ended.
        """
        from mnemosyne.agents.context import AgentContext, LocalUpcalls
        from mnemosyne.models import WorkItem

        made = self._contexts.get(slot)
        if made is None:
            known = self._seats[seat]
            item = self._side.item(slot)
            if item is None:
                raise LookupError("the work has ended")
            assignment = self._assignments.get(slot)
            if assignment is not None:
                made = self._claimed_context({**assignment, "item": item}, known)
            else:
                made = AgentContext(
                    WorkItem.model_validate(item),
                    agent_id=known.agent_id,
                    generation=known.generation,
                    upcalls=LocalUpcalls(),
                )
                made.run_blocking = self.run_blocking
            made.config = known.agent.config
            made = self._contexts.setdefault(slot, made)  # another thread of the agent may have been faster
        return made

    async def _direct(self, slot: int, seat: int, work: dict[str, Any], context: Context) -> None:
        """Do direct work and report it, and then what comes after it, for as long as no item waits or leaves a mark.

        So an item that takes no time costs no task. One that waits goes on alone; what comes after it gets another.
        """
        self._goes_on = True
        task = None
        while True:
            self._slot = slot
            try:
                known = self._seats[seat]
                alone = known.alone
                if alone is None or "tree" in work["context"]:
                    await self._direct_in_harness(slot, seat, known)
                else:  # no harness stands around it, so an agent that needs none is simply called
                    work_at_hand((self, slot, seat))
                    if self._unmarked is None:
                        task = asyncio.current_task()
                        self._unmarked = _marks(task, context)
                    try:
                        returned = await alone(work)
                    except BaseException as error:
                        self._goes_on = False  # the traceback holds this frame, where no other item must be seen
                        self._side.completed(slot, _failure(blamed(known.name, error), claimed=False))
                    else:
                        if not self._side.returned(slot, returned):
                            whole = check_result(known.name, returned)
                            self._side.completed(slot, {"kind": "result", "result": whole})
                        del returned  # the next item may wait for long
            except BaseException as error:  # nothing that an agent raises may end the loop
                self._goes_on = False
                self._side.completed(slot, _failure(error, claimed=False))
            if self._tasks or self._contexts or not self._flush_is_due:  # else there is nothing to clear away
                self._reported(slot)
            if not self._goes_on:
                return
            task = task or asyncio.current_task()
            if _marks(task, context) != self._unmarked:
                return
            message = self._port.next_direct()
            if message is None:
                return
            kind, slot, seat, work = message
            if kind != "direct":
                self._receive(*message)
                return

    async def _direct_in_harness(self, slot: int, seat: int, known: _Seat) -> None:
        result = await self._in_harness(known, self.make_context(slot, seat))
        self._side.completed(slot, {"kind": "result", "result": result})

    async def _claimed(self, slot: int, seat: int, assignment: Json) -> None:
        """Work on a claimed item and report it; with the harness around it, unless it is a plain item of a user's."""
        try:
            known = self._seats[seat]
            alone = known.alone
            if alone is not None and _needs_no_harness(assignment):
                self._assignments[slot] = assignment
                work_at_hand((self, slot, seat))
                await self._plain_item(slot, known, cast("dict[str, Any]", assignment["item"]), alone)
            else:
                context = self._claimed_context(assignment, known)
                result = await self._in_harness(known, context)
                self._side.completed(slot, {"kind": "result", "result": result})
        except BaseException as error:  # nothing that an agent raises may end the loop
            self._side.completed(slot, _failure(error, claimed=True))
        self._assignments.pop(slot, None)
        self._reported(slot)

    async def _plain_item(
        self, slot: int, known: _Seat, item: dict[str, Any], alone: Callable[[dict[str, Any]], Awaitable[object]]
    ) -> None:
        """Call the agent with a plain item; counted, and its failure logged, as ``stages.run_item`` does."""
        metrics, number = _metrics(), str(item["id"])
        metrics.start_work_item(number, known.agent_id, str(item["phase"]), role=str(item["role"]))
        try:
            returned = await alone(item)
            taken = self._side.returned(slot, returned)
            whole = returned if taken else check_result(known.name, returned)
        except BaseException as error:
            to_blame = blamed(known.name, error)
            metrics.finish_work_item(number, success=False, error_type=type(to_blame).__name__)
            with contextlib.suppress(BaseException):  # what telling of it raises must not take its place
                from mnemosyne.agents.stages import log_failure

                log_failure(known.agent, current_context(), to_blame)
            self._side.completed(slot, _failure(to_blame, claimed=True))
            return
        if whole is not returned:
            self._side.completed(slot, {"kind": "result", "result": cast("Json", whole)})
        succeeded = bool(cast("Json", whole)["success"])
        metrics.finish_work_item(number, success=succeeded, error_type=None if succeeded else "unsuccessful")

    def _claimed_context(self, assignment: Json, seat: _Seat) -> AgentContext:
        context = _context(assignment, seat, _Upcalls(self._side, self._mailbox, seat.host.id))
        context.run_blocking = self.run_blocking
        return context

    async def _in_harness(self, seat: _Seat, context: AgentContext) -> Json:
        from mnemosyne.agents.stages import run_item

        return await run_item(seat.agent, context, self._services_of(seat.host))

    def _services_of(self, host: _Host) -> Services:
        from mnemosyne import guard
        from mnemosyne.agents.stages import Services

        if host.directory is not None:
            guard.configure(lock=guard_lock(host.directory, host.boot))  # does not change a guard that runs
        if self._services is None:
            self._services = Services(guard=guard.shared, workspace_for=_workspace)
        return self._services


@functools.cache
def _metrics() -> MetricsCollector:
    from mnemosyne.metrics import get_metrics_collector  # in here, once: direct work needs none

    return get_metrics_collector()


def _needs_no_harness(assignment: Json) -> bool:
    """Whether all that the harness would do for an item is to call its agent."""
    if assignment["kind"] != "work" or assignment.get("run") is not None:
        return False
    return "tree" not in cast("Json", cast("Json", assignment["item"])["context"])


def _is_claude(agent: AgentExecutionMixin) -> bool:
    # Not imported for it: an agent of that class has done so, and a process without one need not wait for it.
    claude = sys.modules.get("mnemosyne.agents.claude_agent")
    return claude is not None and isinstance(agent, claude.ClaudeAgent)


def guard_lock(directory: Path | str, boot: str) -> Path:
    """The lock that the guard of a boot holds until its last child is gone; a resume waits for it (KILL-2)."""
    from pathlib import Path  # in here: it takes 8 ms, and an agent's first item needs none

    return Path(directory) / "boots" / f"{boot}.guard"


def _workspace(context: AgentContext) -> Workspace:
    from mnemosyne import guard
    from mnemosyne.workspace import Workspace

    if context.run is None:
        raise InvalidInput(f"item {context.item.id} belongs to no run and so has no workspace", code="MN-0117")
    run = context.run
    return Workspace(workspace=run.workspace, directory=run.directory, guard=guard.shared(), tag=context.item.id)


def _context(assignment: Json, seat: _Seat, upcalls: _Upcalls) -> AgentContext:
    from pathlib import Path

    from mnemosyne.agents.context import AgentContext, RunInfo
    from mnemosyne.models import Acceptance, PlanTask, WorkItem

    run, task = assignment.get("run"), assignment.get("task")
    info = None
    if isinstance(run, dict) and run.get("directory"):
        info = RunInfo(
            id=str(run["id"]),
            workspace=Path(str(run["workspace"])),
            directory=Path(str(run["directory"])),
            prompt=cast("str | None", run["prompt"]),
            options=cast("Json", run["options"]),
        )
    return AgentContext(
        WorkItem.model_validate(assignment["item"]),
        epoch=cast(int, assignment["epoch"]),
        kind=str(assignment["kind"]),
        agent_id=seat.agent_id,
        generation=seat.generation,
        run=info,
        task=PlanTask.model_validate(task) if task else None,
        setup=tuple(cast("list[str]", assignment.get("setup") or [])),
        depth_limit=cast("int | None", assignment.get("depth")),
        accepted=tuple(map(Acceptance.model_validate, cast("list[Json]", assignment.get("accepted") or []))),
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
    if isinstance(error, ModelParked):
        problem = _problem("model", error)
        return {"kind": "parked", "problem": problem, "class": error.failure, "seconds": error.seconds}
    if isinstance(error, ModelError):
        said: Json = {"fatal": error.fatal, "retry_after": error.retry_after, "class": error.failure or None}
        return {"kind": "model", "problem": _problem("model", error), **said}
    if isinstance(error, BudgetExceeded):
        data: Json = {name: value for name, value in error.data.items() if name != "left"}
        return {"kind": "budget", "problem": {**_problem("budget", error), "data": data}}
    if isinstance(error, EnvironmentProblem):
        return {"kind": "environment", "problem": _problem("environment", error)}
    if isinstance(error, InvalidInput):
        return {"kind": "invalid", "problem": _problem("invalid_input", error)}
    # The caller of direct work gets the exception itself; nobody waits for that of a claim.
    return {"kind": "raised", "error": _described(error, permanent=False, keep=not claimed and not _is_worker)}


def _problem(kind: str, error: MnemosyneError) -> Json:
    return {"kind": kind, **{key: _encodable(redact(text)) for key, text in error.to_dict().items()}}


def _encodable(text: str) -> str:
    """Without lone surrogates, which a file name that is no UTF-8 brings along and Rust cannot take."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _described(error: BaseException, *, permanent: bool, keep: bool = False) -> Json:
    try:
        text = str(error)
    except BaseException:  # a __str__ of the agent's own
        text = "it has no text"
    if isinstance(error, MnemosyneError) and error.reason:
        text = f"{text}: {error.reason}"
    lines = "".join(traceback.format_exception(error))
    return {
        "permanent": permanent,
        "type_name": type(error).__name__,
        # Events keep it for ever, and an agent may say a key aloud (SECRET-1).
        "message": _encodable(redact(text[:_TRACEBACK_LENGTH])),
        "traceback": _encodable(redact(lines[-_TRACEBACK_LENGTH:])),
        "token": keep_exception(error) if keep else None,
    }


def run_plain(number: int) -> None:
    """Run a function of the pool on this thread; one that was cancelled is not there any more."""
    call = _plain_calls.pop(number, None)
    if call is None:
        return
    try:
        call.value = call.function()
    except BaseException as error:  # it belongs to whoever waits
        call.error = error


def stuck_slot(number: int) -> int | None:
    """Return the slot of the item in whose code a loop is stuck, if it is in one; called from another thread."""
    stuck = _loops.get(number)
    return stuck.slot_at_work() if stuck is not None else None


def ran(number: int, call: int) -> None:
    """Tell a loop, on its thread, that a plain function has ended."""
    if number in _loops:
        _loops[number].ran(call)


def run_worker(side: _core.AgentLoop, start: Json, prepare: Callable[[], None]) -> None:
    """Live in a process with one agent until the other end says that it is over, or SIGTERM does.

    Args:
        side: The other end.
        start: The agent.
        prepare: Called before it is made; what it raises is why the agent could not be.
    """
    global _is_worker
    _is_worker = True

    async def live() -> None:
        agents = _Loop(side, prepare)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, agents.end)
        agents.start(0, 0, start)
        await agents.live()

    _run(live())


def run(side: _core.AgentLoop) -> None:
    """Live on this thread until Rust says that it is over."""
    _run(_main(side))


def _run(living: Coroutine[object, object, None]) -> None:
    loop = new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        _complete(loop, living)
    finally:
        _disarm()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel("the loop ends")
        # Not `asyncio.Runner`: it waits without end for a task that ignores its cancel, and for threads.
        _complete(loop, _wait(left))
        _complete(loop, _wait({loop.create_task(loop.shutdown_asyncgens())}))
        loop.close()


def _complete(loop: asyncio.AbstractEventLoop, work: Coroutine[object, object, None]) -> None:
    task = loop.create_task(work)
    while not task.done():
        try:
            loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt):
            pass  # asyncio lets these two out of the loop, whichever task raised them: it has its error all the same
        except RuntimeError:
            if task.done():
                raise
            # An agent stopped the loop; it is not the agent's.
    task.result()


async def _wait(tasks: set[asyncio.Task[Any]]) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=LEFT_SECONDS)


async def _main(side: _core.AgentLoop) -> None:
    agents = _Loop(side)
    agents.begin_direct_work_in_rust()
    await agents.live()


def _log(at: float, level: int, logger: str, text: str, about: list[tuple[str, str]]) -> None:
    """Hand one record of Rust's to Python's logging, with its own time and what it is about."""
    known = logging.getLogger(logger)
    if known.isEnabledFor(level):
        record = known.makeRecord(logger, level, "rust", 0, text, (), None)
        record.created = at
        record.msecs = at % 1 * 1000
        record.mnemosyne = dict(about)
        with contextlib.suppress(Exception):  # a handler of the user's is not the loop's to answer for
            known.handle(record)


_stderr: int | None = None


def _arm(seconds: float) -> None:
    """Have all stacks written to standard error in so many seconds, by a thread that needs no interpreter lock."""
    global _stderr
    with contextlib.suppress(OSError, ValueError):  # a process without standard error
        if _stderr is None:
            _stderr = os.dup(2)
        faulthandler.dump_traceback_later(seconds, file=_stderr)


def _disarm() -> None:
    faulthandler.cancel_dump_traceback_later()


# A fork inherits the order but not the thread that would carry it out, and would wait for that thread at its own end.
os.register_at_fork(before=_disarm)
atexit.register(_core.stop_loop)
