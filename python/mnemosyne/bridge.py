"""``ClaudeAgentBridge``: a handle to one supervised agent, from any loop.

The agent lives on the loop thread and is owned by its role's supervisor in Rust (SUP-4); this is only a handle. Direct
work is fast and supervised, but not durable: what must survive goes through ``Orchestra``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, cast

from mnemosyne.agents.agent_factory import DEFAULT_SOURCES
from mnemosyne.errors import BridgeClosed, InvalidInput
from mnemosyne.mailbox import mailbox
from mnemosyne.models import AgentHealth, AgentRole, Event, WorkItem, WorkResult

if TYPE_CHECKING:
    from pydantic import JsonValue

    from mnemosyne._core import Handle

__all__ = ["AgentSpec", "ClaudeAgentBridge", "SupervisorSpec"]

EVENTS_AT_A_TIME = 500


@dataclass
class AgentSpec:
    """How an agent is made, as data.

    Attributes:
        source: ``"package.module:Class"`` or a class with ``execute_work``.
        instances: How many; None is ``max_concurrent`` for roles that work on tasks, else 1.
        in_flight: Items at a time; more than 1 only for agents that are written for it.
        isolation: ``"thread"``: it shares one loop thread with the others. ``"process"``: its own process, which can
            be killed: for agents with C code, and for tools that nobody vouches for.
        restart: When an agent that ended is started again: always, only after an error, never.
        shutdown: What it gets before it is ended: seconds to finish what it holds, ``"infinity"``, or ``"kill"``.
        limits: Of a process of its own, and of each that it starts: ``memory_mb`` (that it can write to, in MiB) and
            ``cpu_seconds`` (over its life).
        config: Given whole to every generation.
    """

    source: str | type
    instances: int | None = None
    in_flight: int = 1
    isolation: Literal["thread", "process"] = "thread"
    restart: Literal["permanent", "transient", "temporary"] = "permanent"
    shutdown: float | Literal["kill", "infinity"] = 10.0
    limits: Mapping[str, int] = field(default_factory=dict)
    config: Mapping[str, JsonValue] = field(default_factory=dict)

    def to_wire(self) -> dict[str, JsonValue]:
        """Return what Rust keeps; a class stays in Python, and Rust knows it by a key.

        Rust judges the values, each key by itself, where the agent is added.

        Raises:
            InvalidInput: A class that no other process could find, with ``isolation="process"`` (MN-0380).
        """
        from mnemosyne import loop

        if isinstance(self.source, str):
            source: dict[str, JsonValue] = {"import": self.source}
        else:
            source = {"registered": loop.register(self.source)}
        return {
            "source": source,
            "instances": self.instances,
            "in_flight": self.in_flight,
            "restart": self.restart,
            "shutdown": self.shutdown,
            "isolation": self.isolation,
            "limits": dict(self.limits),
            "importable": self._importable(),
            "config": dict(self.config),
        }

    def _importable(self) -> bool:
        """Say whether a process of its own could make the agent; one that must have one is refused otherwise."""
        from mnemosyne import worker

        if isinstance(self.source, str):
            return True
        try:
            worker.importable_name(self.source)
        except InvalidInput:
            if self.isolation == "process":
                raise
            return False
        return True


@dataclass
class SupervisorSpec:
    """How the supervisor of a role treats its agents, as data. Rust judges the values, each key by itself.

    Attributes:
        strategy: Who starts anew when an agent goes down: that one (``one_for_one``, ``pool``), all (``one_for_all``),
            or that one and those that were started after it (``rest_for_one``). The agents of a pool are alike, can be
            scaled, and are ended side by side; the others are ended one by one, the youngest first.
        intensity: Restarts within ``period`` that are accepted; one more ends in quarantine.
        period: Seconds.
    """

    strategy: Literal["one_for_one", "one_for_all", "rest_for_one", "pool"] = "pool"
    intensity: int = 5
    period: float = 300.0

    def to_wire(self) -> dict[str, JsonValue]:
        """Return what Rust keeps."""
        return {"strategy": self.strategy, "intensity": self.intensity, "period": self.period}


def as_spec(role: AgentRole, agent: AgentSpec | type | str | None) -> AgentSpec:
    """Return the specification that ``agent`` stands for; None is the role's own agent."""
    if isinstance(agent, AgentSpec):
        return agent
    return AgentSpec(source=DEFAULT_SOURCES[role] if agent is None else agent)


class ClaudeAgentBridge:
    """A handle to one supervised agent; any thread, any loop; an async context manager."""

    def __init__(self, handle: Handle, agent_id: str, role: AgentRole, *, owns_tree: bool = False) -> None:
        self._handle = handle
        self._owns_tree = owns_tree
        self._closed = False
        self.agent_id = agent_id
        self.role = role

    @classmethod
    async def spawn(
        cls,
        role: AgentRole | str,
        agent: AgentSpec | type | str | None = None,
        *,
        agent_id: str | None = None,
    ) -> Self:
        """Start an agent under a supervisor of its own.

        Args:
            role: Which role it plays.
            agent: Its class, where it is found, or a whole specification; None is the role's own agent.
            agent_id: Its name; None is ``ROLE-1``.

        Raises:
            InvalidInput: The role or the specification cannot be used.
            EnvironmentProblem: The loop thread did not start.
        """
        from mnemosyne import _core

        known = _role(role)
        config: dict[str, JsonValue] = {"store": None, "roles": [], "claims": False}
        opened = await mailbox().call(lambda port, ticket: _core.tree(port, ticket, config, None))
        handle = cast("Handle", opened)
        return await cls._add(handle, known, as_spec(known, agent), agent_id, owns_tree=True)

    @classmethod
    async def _add(
        cls, handle: Handle, role: AgentRole, spec: AgentSpec, agent_id: str | None, *, owns_tree: bool
    ) -> Self:
        request: JsonValue = {"op": "add_agent", "role": role.value, "spec": spec.to_wire(), "agent_id": agent_id}
        added = await mailbox().call(lambda port, ticket: handle.tree(port, ticket, request))
        name = str(cast(dict[str, object], added)["agent_id"])
        return cls(handle, name, role, owns_tree=owns_tree)

    @property
    def generation(self) -> int:
        """From 1; rises with every restart (FENCE-2)."""
        return self.health().generation

    async def send_work(self, item: WorkItem, *, timeout: float | None = None) -> WorkResult:
        """Send work and wait for its result, for a free place first. A cancelled await cancels the work.

        Args:
            item: The work.
            timeout: Seconds; the smaller of this and ``item.timeout_seconds`` counts.

        Raises:
            AgentError: The agent raised; ``__cause__`` is what it raised.
            WorkTimeout: It did not end in time.
            AgentUnavailable: It cannot take work now.
            BridgeClosed: The bridge was shut down.
        """
        return WorkResult.model_validate(await self._ask({"op": "send_work", **self._work(item, timeout)}))

    def try_send_work(self, item: WorkItem, *, timeout: float | None = None) -> Awaitable[WorkResult]:
        """As ``send_work``, but refused at once, by the call itself, where there is no free place.

        Raises:
            BridgeFull: No free place; nothing was queued.
            BridgeClosed: The bridge was shut down.
        """
        self._check_open()
        request: JsonValue = self._work(item, timeout)
        answer = mailbox().call_at_once(lambda port, ticket: self._handle.try_send_work(port, ticket, request))

        async def result() -> WorkResult:
            return WorkResult.model_validate(await answer)

        task = asyncio.ensure_future(result())
        task.add_done_callback(lambda _: answer.cancel())  # a task that is cancelled before it began never awaits
        return task

    def _work(self, item: WorkItem, timeout: float | None) -> dict[str, JsonValue]:
        return {"agent": self.agent_id, "item": item.model_dump(), "timeout": timeout}

    async def record_error(self, error: BaseException | str) -> AgentHealth:
        """Charge the agent with an error that ``send_work`` did not see."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        answer = await self._ask({"op": "record_error", "agent": self.agent_id, "error": text})
        return AgentHealth.model_validate(answer)

    async def restart(self, reason: str = "requested") -> AgentHealth:
        """Replace the agent by a new generation; this also ends a quarantine."""
        answer = await self._ask({"op": "restart", "agent": self.agent_id, "reason": reason})
        return AgentHealth.model_validate(answer)

    def health(self) -> AgentHealth:
        """Return a snapshot; never blocks.

        Raises:
            BridgeClosed: The agent is gone.
        """
        found = self._handle.agent_health(self.agent_id)
        if found is None:
            raise BridgeClosed(f"the agent {self.agent_id} was shut down")
        return AgentHealth.model_validate(found)

    async def events(self) -> AsyncIterator[Event]:
        """Yield this agent's events, from the oldest that is kept, then live; ends with the agent.

        A standalone bridge keeps its newest 20,000 events, a store keeps all.
        """
        since = 0
        while True:
            over = self._is_over()  # asked before its last events are read
            request: JsonValue = {
                "op": "events",
                "since": since,
                "run": None,
                "agent": self.agent_id,
                "limit": EVENTS_AT_A_TIME,
                "wait": True,
            }
            answer = await mailbox().call(lambda port, ticket: self._handle.store(port, ticket, request))  # noqa: B023
            batch = [Event.model_validate(entry) for entry in cast(list[object], answer)]
            for event in batch:
                since = event.sequence
                yield event
            if over and not batch:
                return

    def _is_over(self) -> bool:
        try:
            return self.health().state == "stopped"
        except BridgeClosed:  # it is not kept any more
            return True

    async def shutdown(self, *, timeout: float = 10.0) -> None:
        """Stop the agent, giving what it does ``timeout`` seconds to end. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await self._ask({"op": "shutdown_agent", "agent": self.agent_id, "timeout": timeout}, closed=True)
        if self._owns_tree:
            await self._ask({"op": "shutdown"}, closed=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    def _check_open(self) -> None:
        if self._closed:
            raise BridgeClosed(f"the bridge to {self.agent_id} was shut down")

    async def _ask(self, request: JsonValue, *, closed: bool = False) -> object:
        if not closed:
            self._check_open()
        try:
            return await mailbox().call(lambda port, ticket: self._handle.tree(port, ticket, request))
        except BridgeClosed:
            if closed:
                return None
            raise


def _role(role: AgentRole | str) -> AgentRole:
    try:
        return AgentRole(role)
    except ValueError:
        known = ", ".join(AgentRole)
        raise InvalidInput(f"there is no role {role!r}", code="MN-0153", hint=f"the roles are {known}") from None
