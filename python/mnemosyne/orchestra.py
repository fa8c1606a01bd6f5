"""``Orchestra``: a store, a tree of agents over it, and runs. The Python face of what Rust keeps alive.

Everything that must survive is in the store before it is acknowledged (DUR-1); this module holds no state that a
``kill -9`` could take.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, cast

from pydantic import JsonValue, SecretStr

from mnemosyne.bridge import EVENTS_AT_A_TIME, AgentSpec, ClaudeAgentBridge, SupervisorSpec, as_spec
from mnemosyne.config.secrets import ApiKey, SecretsManager, key_in
from mnemosyne.config.settings import check_base_url, default_store, state_directory
from mnemosyne.errors import (
    AgentError,
    BridgeClosed,
    EnvironmentProblem,
    InvalidInput,
    MnemosyneError,
    RunFailed,
)
from mnemosyne.mailbox import mailbox
from mnemosyne.models import AgentRole, Budget, Event, Plan, SupervisorView, SystemHealth, WorkItem, WorkResult

if TYPE_CHECKING:
    from mnemosyne._core import Handle
    from mnemosyne.guard import Spawned

__all__ = [
    "Orchestra",
    "Run",
    "RunOverview",
    "RunResult",
    "Work",
    "backup_store",
    "cancel_run",
    "check_store",
    "discard_dead_letter",
    "list_dead_letters",
    "list_runs",
    "open_store",
    "pause_run",
    "post_command",
    "prune_store",
    "read_agents",
    "read_all_events",
    "read_events",
    "read_evidence",
    "read_journals",
    "requeue_dead_letter",
    "show_run",
    "sum_up",
    "unpause_run",
]

Json = dict[str, JsonValue]

_log = logging.getLogger("mnemosyne.orchestra")

GUARD_PATIENCE = 15.0
"""Seconds that a resume waits for the last child of the process before."""
_ENDED = frozenset({"done", "failed", "cancelled", "interrupted", "budget"})
_END_KINDS = frozenset({"run_completed", "run_failed", "run_cancelled", "run_interrupted", "budget_exceeded"})
_EXIT_CODES = {"done": 0, "failed": 1, "cancelled": 1, "budget": 4}
_ENVIRONMENT, _SIGNAL = 3, 130


class Orchestra:
    """A store with a tree of agents over it; an async context manager: start, then drain.

    Args:
        store: The store's file; None is the default one.
        agents: Specifications by role; a role without one gets its own agent.
        model: Model id for all roles; None is each role's default, ``"demo"`` the offline demo model.
        base_url: A server that speaks the Messages API; None is Anthropic's.
        api_key: The key; None is looked for (``mnemosyne.config.secrets``), before the first agent starts.
        max_concurrent: Agents of each role that works on tasks.
        supervisors: How agents of a role are restarted; a role without one gets a pool with 5 restarts in 300 s.
        durability: What an acknowledgement survives. ``"power-safe"``: the loss of power. ``"crash-safe"``: the end of
            any process, also by ``kill -9``, but the loss of power may take what was acknowledged in the seconds
            before; with one item at a time it is nearly twice as fast, with many there is little to gain.

    Raises:
        MissingCredential: On entering: no key was found and one is needed (MN-0201).
        StoreUnavailable: On entering: the store cannot be opened.
    """

    def __init__(
        self,
        *,
        store: Path | None = None,
        agents: Mapping[AgentRole, AgentSpec] | None = None,
        model: str | None = None,
        base_url: str | None = None,
        api_key: SecretStr | None = None,
        max_concurrent: int = 4,
        supervisors: Mapping[AgentRole, SupervisorSpec] | None = None,
        durability: Literal["power-safe", "crash-safe"] = "power-safe",
    ) -> None:
        if max_concurrent < 1:
            raise InvalidInput("max_concurrent is at least 1", code="MN-0115")
        if durability not in ("power-safe", "crash-safe"):
            raise InvalidInput(
                f"there is no durability {durability!r}", code="MN-0115", hint='use "power-safe" or "crash-safe"'
            )
        self._crash_safe = durability == "crash-safe"
        self._store = (store or default_store()).expanduser().absolute()
        self._supervisors = {AgentRole(role): spec for role, spec in (supervisors or {}).items()}
        self._specs = {AgentRole(role): spec for role, spec in (agents or {}).items()}
        named = base_url or (os.environ.get("ANTHROPIC_BASE_URL") if model != "demo" else None) or None
        # The run remembers it, so it is checked here and not where it is used (SECRET-1).
        self._base_url = None if named is None else check_base_url(named)
        self._model, self._key = model, api_key
        self._max_concurrent = max_concurrent
        self._handle: Handle | None = None
        self._server: Spawned | None = None
        self._runs: list[str] = []

    async def __aenter__(self) -> Self:
        from mnemosyne import _core, worker

        key = await asyncio.to_thread(self._resolve_key)
        store = await open_store(self._store, crash_safe=self._crash_safe)
        if orphans := await asyncio.to_thread(worker.sweep, state_directory(self._store)):
            text = "%d processes that an earlier mnemosyne had left behind were ended"
            logging.getLogger(__name__).warning(text, orphans)
        base_url = self._base_url
        if self._model == "demo" and base_url is None:
            base_url = await self._start_demo(state_directory(self._store), store.boot())
        try:
            roles: list[JsonValue] = [self._role(role, base_url, key) for role in AgentRole]
            followed = logging.getLogger("mnemosyne.events").isEnabledFor(logging.INFO)
            config: Json = {"store": str(self._store), "roles": roles, "claims": True, "log_events": followed}
            opened = await mailbox().call(lambda port, ticket: _core.tree(port, ticket, config, store))
        except BaseException:
            await self._stop_demo()
            raise
        self._handle = cast("Handle", opened)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is None:
            return
        try:
            await self.drain(0.0 if kind is not None else None)
        finally:
            # Also where the store is gone or the drain was cancelled.
            try:
                await self._ask_tree({"op": "shutdown"})
            finally:
                self._handle = None
                await self._stop_demo()

    async def _stop_demo(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop()

    async def _start_demo(self, directory: Path, boot: str) -> str:
        from mnemosyne import guard
        from mnemosyne.demo.launch import SERVER_VARIABLE, start_server
        from mnemosyne.loop import guard_lock

        if running := os.environ.get(SERVER_VARIABLE):
            return running
        guard.configure(lock=guard_lock(directory, boot))
        base_url, self._server = await start_server(guard.shared())
        return base_url

    def _resolve_key(self) -> ApiKey:
        if isinstance(self._key, ApiKey):  # the command line's, which knows its source
            return self._key
        given = key_in({"api_key": self._key}, "api_key of the Orchestra")
        return given or SecretsManager(None, self._base_url, self._model).resolve()

    def _role(self, role: AgentRole, base_url: str | None, key: ApiKey) -> Json:
        from mnemosyne import loop

        spec = as_spec(role, self._specs.get(role))
        wire = spec.to_wire()
        own = cast(Json, wire["config"])
        shared: Json = {"model": self._model}
        # Never half of each: our key must not go to a server that only this agent names (SECRET-1).
        if "base_url" not in own and "api_key" not in own:
            shared["base_url"] = base_url
            shared["key_source"] = key.source
            if key.profile is not None:
                shared["profile"] = key.profile
            else:
                shared["api_key"] = loop.hide(key.get_secret_value())
        wire["config"] = {**shared, **own}
        default = 1 if role is AgentRole.ORCHESTRATOR else self._max_concurrent
        instances = default if spec.instances is None else spec.instances
        supervisor = self._supervisors.get(role, SupervisorSpec()).to_wire()
        return {"role": role.value, "instances": instances, "spec": wire, "supervisor": supervisor}

    async def submit(
        self,
        prompt: str | Plan,
        *,
        workspace: Path,
        budget: Budget | None = None,
        idempotency_key: str | None = None,
    ) -> Run:
        """Store a run and return after the commit (DUR-1).

        Args:
            prompt: A sentence, or a plan, with which the first three phases are skipped.
            workspace: The user's folder.
            budget: What it may spend.
            idempotency_key: The same key again gives the same run.

        Raises:
            InvalidInput: An empty prompt, a plan or a workspace that cannot be used, a limit in dollars where a model
                has no known price (MN-0119); nothing is stored.
        """
        from mnemosyne.llm.prices import check_priced
        from mnemosyne.validation import check_prompt, validate_work_plan
        from mnemosyne.workspace import check_workspace

        check_priced(budget, self._models())
        if isinstance(prompt, str):
            check_prompt(prompt)
        else:  # JSON that a type checker did not see is read, and refused by its paths
            validate_work_plan(prompt).raise_for_errors()
            prompt = Plan.model_validate(prompt)
        folder = workspace.expanduser().absolute()
        await asyncio.to_thread(check_workspace, folder)
        run: Json = {
            "id": f"r-{secrets.token_hex(4)}",
            "prompt": prompt if isinstance(prompt, str) else None,
            "spec": None,
            "plan": prompt.model_dump(mode="json") if isinstance(prompt, Plan) else None,
            "workspace": str(folder.resolve()),
            "options": self._options(),
            "budget": (budget or Budget()).model_dump(mode="json"),
            "state": "running",
            "phase": "prompt_to_spec",
            "boot": None,
            "resumes": 0,
            "error": None,
            "created_at": int(datetime.now(UTC).timestamp() * 1000),
            "ended_at": None,
        }
        stored = await self._ask_store({"op": "submit_run", "run": run, "idempotency_key": idempotency_key})
        return self._run(str(stored))

    async def submit_work(
        self,
        item: WorkItem,
        *,
        idempotency_key: str | None = None,
        unique_key: str | None = None,
        delay: float = 0.0,
        deadline: float | None = None,
    ) -> Work:
        """Store one durable item for a role and return after the commit (DUR-1).

        Args:
            item: What to do.
            idempotency_key: The same key again gives the same item, whatever became of it.
            unique_key: As long as an item of the same key has not ended, that one is given and nothing is stored.
            delay: Seconds from now before which nobody begins it.
            deadline: Seconds from now after which nobody begins it: it has failed then (MN-0219). How long it may take
                once it is begun is the item's ``timeout_seconds``.

        Raises:
            InvalidInput: The item cannot be used; all that is wrong is in ``problems`` (MN-0117).
        """
        if not isinstance(item, WorkItem):
            _refuse_with_reasons(item)
            item = WorkItem.model_validate(item)
        how: Json = {"idempotency_key": idempotency_key, "unique_key": unique_key}
        if delay > 0 or deadline is not None:
            now = time.time() * 1000
            how["not_before"] = int(now + delay * 1000) if delay > 0 else None
            how["deadline"] = int(now + deadline * 1000) if deadline is not None else None
        handle = self._open_handle()
        try:
            # Before: an agent that waits begins it with the commit, earlier than the answer is here.
            _log.info(
                "is submitted", extra={"mnemosyne": {"item": item.id, "role": item.role, "attempt": item.attempt}}
            )
            stored = await mailbox().call(lambda port, ticket: handle.submit(port, ticket, item, how))
            return Work(handle, str(stored))
        except InvalidInput:
            # The store judges each item by the same rules (one table of cases); what a model that was changed after it
            # was made may hold beyond them is named here. To judge all of them twice took a tenth of an item's time.
            _refuse_with_reasons(item)
            raise

    async def resume(self, run_id: str, *, budget: Budget | None = None) -> Run:
        """Continue a run that another process left; waits until that process's last child is gone.

        Raises:
            InvalidInput: There is no such run, it has ended, its process lives, or the budget is not larger than what
                is spent (MN-0140).
        """
        await self._wait_until_gone(run_id, budget)
        wire = budget.model_dump(mode="json") if budget is not None else None
        await self._ask_store({"op": "adopt_run", "run": run_id, "budget": wire})
        return self._run(run_id)

    async def retry(self, run_id: str, task: str, *, note: str | None = None, budget: Budget | None = None) -> Run:
        """Give a task that failed new attempts, and go on with its run as ``resume`` does.

        Args:
            run_id: The run, which failed or was stopped.
            task: The task. Tasks that were skipped because of it wait for it again.
            note: Guidance for the prompts of the new attempts.
            budget: A larger one.

        Raises:
            InvalidInput: There is no such run (MN-0110) or task (MN-0121), the task did not fail (MN-0122), the run was
                cancelled (MN-0116), its process lives (MN-0112), or the budget is not larger than what is spent
                (MN-0140).
        """
        await self._wait_until_gone(run_id, budget)
        wire = budget.model_dump(mode="json") if budget is not None else None
        await self._ask_store({"op": "retry_task", "run": run_id, "task": task, "note": note, "budget": wire})
        return self._run(run_id)

    async def _wait_until_gone(self, run_id: str, budget: Budget | None) -> None:
        from mnemosyne.guard import wait_until_gone
        from mnemosyne.llm.prices import check_priced
        from mnemosyne.loop import guard_lock

        check_priced(budget, self._models())
        owner = cast(Json, (await self._snapshot(run_id))["owner"])
        if owner["boot"] and not owner["alive"]:
            lock = guard_lock(state_directory(self._store), str(owner["boot"]))
            if not await wait_until_gone(lock, GUARD_PATIENCE):
                raise EnvironmentProblem(
                    f"a command of run {run_id} is still running",
                    code="MN-0255",
                    reason=f"the process before ended, but not all that it had started ({lock} is held)",
                    hint="wait for it to end, or end it, and run the command again",
                )

    async def add_agent(self, role: AgentRole, spec: AgentSpec) -> ClaudeAgentBridge:
        """Add an agent to a role of the running tree."""
        return await ClaudeAgentBridge._add(self._open_handle(), AgentRole(role), spec, None, owns_tree=False)

    async def scale(self, role: AgentRole, instances: int) -> None:
        """Make a role's pool as large as asked.

        New agents are made like the first ones. The youngest are ended, side by side, each with the time of its own
        specification, and are not kept. Agents that were added by hand are not counted.

        Raises:
            InvalidInput: The role's supervisor has another strategy than ``pool`` (MN-0361).
            BridgeClosed: The orchestra drains.
        """
        if instances < 0:
            raise InvalidInput(f"a pool cannot have {instances} agents", code="MN-0361")
        await self._ask_tree({"op": "scale", "role": AgentRole(role).value, "instances": instances})

    async def supervisors(self) -> dict[AgentRole, SupervisorView]:
        """Return the supervisors and their agents as data, with every default spelled out; no configuration."""
        views = cast(Json, await self._ask_tree({"op": "supervisors"}))
        return {AgentRole(role): SupervisorView.model_validate(view) for role, view in views.items()}

    async def events(self, *, since: int = 0) -> AsyncIterator[Event]:
        """Yield every event of the store after ``since``, then live; ends with the orchestra."""
        handle = self._open_handle()
        while True:
            over = self._handle is not handle
            batch = await _events(handle, None, since, wait=not over)
            for event in batch:
                since = event.sequence
                yield event
            if over and not batch:
                return

    def agents(self) -> list[ClaudeAgentBridge]:
        """Return a handle for every agent."""
        handle = self._open_handle()
        health = self.health()
        roles = {agent.agent_id: role for role, found in health.roles.items() for agent in found.agents}
        return [ClaudeAgentBridge(handle, name, roles[name]) for name in handle.agents() if name in roles]

    def health(self) -> SystemHealth:
        """Return a snapshot of the whole tree; never blocks."""
        return SystemHealth.model_validate(self._open_handle().health())

    async def drain(self, timeout: float | None = None) -> bool:
        """Stop claiming, let running items finish, cancel what is left; runs under way become interrupted.

        Args:
            timeout: Seconds that every agent gets; None: each has the ``shutdown`` of its own specification. The times
                run side by side.

        Returns:
            Whether everything that ran finished by itself.
        """
        finished = bool(await self._ask_tree({"op": "drain", "seconds": timeout}))
        for run in self._runs:
            await _stop(self._open_handle(), run, None)
        return finished

    def _options(self) -> Json:
        agents: Json = {role.value: spec.source for role, spec in self._specs.items() if isinstance(spec.source, str)}
        return {
            "model": self._model,
            "base_url": self._base_url,
            "max_concurrent": self._max_concurrent,
            "demo": self._model == "demo",
            "agents": agents,
        }

    def differs_from(self, options: Mapping[str, JsonValue]) -> str | None:
        """Return in what a run that was begun with these options would be worked on otherwise here, or None."""
        own, differs = self._options(), ("model", "base_url", "agents")
        return next((name.replace("_", " ") for name in differs if own[name] != options.get(name)), None)

    def _models(self) -> list[str]:
        """The models that the agents will ask, as far as their settings say."""
        from mnemosyne.llm.prices import default_model

        own = {role: spec.config.get("model") for role, spec in self._specs.items()}
        return [str(own.get(role) or self._model or default_model(role)) for role in AgentRole]

    def _run(self, run_id: str) -> Run:
        self._runs.append(run_id)
        return Run(self._open_handle(), run_id)

    def _open_handle(self) -> Handle:
        if self._handle is None:
            raise BridgeClosed("the orchestra is not open", hint="use it as `async with Orchestra(...) as orchestra:`")
        return self._handle

    async def _snapshot(self, run_id: str) -> Json:
        return await _snapshot(self._open_handle(), run_id)

    async def _ask_store(self, request: Json) -> object:
        return await _ask(self._open_handle(), request)

    async def _ask_tree(self, request: Json) -> object:
        handle = self._open_handle()
        return await mailbox().call(lambda port, ticket: handle.tree(port, ticket, request))


class Work:
    """One durable item that a user submitted."""

    def __init__(self, handle: Handle, item_id: str) -> None:
        self._handle = handle
        self.id = item_id

    async def result(self) -> WorkResult:
        """Wait for its end. A result that says ``success: false`` is a value, not an exception.

        Raises:
            AgentError: It ended without a result: cancelled, dead, or never possible.
        """
        end = cast(Json, await mailbox().call(lambda port, ticket: self._handle.wait(port, ticket, self.id)))
        if end["result"] is not None:
            return WorkResult.model_validate(end["result"])
        problem = cast(Json, end["problem"] or {})
        raise AgentError(
            f"item {self.id} is {end['state']}",
            code=str(problem["code"]) if problem else None,
            reason=": ".join(str(problem[key]) for key in ("message", "reason") if problem.get(key)),
        )

    async def cancel(self, reason: str = "requested") -> None:
        """Cancel it, and what is in flight."""
        request: Json = {"op": "cancel_item", "item": self.id, "reason": reason}
        await mailbox().call(lambda port, ticket: self._handle.tree(port, ticket, request))


class Run:
    """One run of this orchestra."""

    def __init__(self, handle: Handle, run_id: str) -> None:
        self._handle = handle
        self.id = run_id

    async def events(self, *, since: int = 0) -> AsyncIterator[Event]:
        """Yield its events after ``since``: replay, then live; ends with the run."""
        async for event in _follow(self._handle, self.id, since):
            yield event

    async def result(self) -> RunResult:
        """Wait until nothing more happens without a person; a failed run is a value."""
        since = 0
        while True:
            snapshot = await _snapshot(self._handle, self.id)
            result = _result(snapshot)
            if result.state in _ENDED:
                return result
            since = cast(int, cast(Json, snapshot["snapshot"])["last_sequence"])
            await _events(self._handle, self.id, since, wait=True)

    async def cancel(self, reason: str = "requested") -> None:
        """Cancel it, and what is in flight."""
        request: Json = {"op": "cancel_run", "run": self.id, "reason": reason}
        await mailbox().call(lambda port, ticket: self._handle.tree(port, ticket, request))

    async def pause(self, reason: str = "requested") -> None:
        """Begin nothing more of it; what is under way is finished. Its time does not count meanwhile."""
        await _ask(self._handle, {"op": "pause_run", "run": self.id, "reason": reason})

    async def unpause(self) -> None:
        """Go on with it after a pause."""
        await _ask(self._handle, {"op": "continue_run", "run": self.id})

    async def interrupt(self, problem: MnemosyneError | None = None) -> None:
        """Stop it so that it can be resumed; a run that has ended is left alone."""
        await _stop(self._handle, self.id, problem)


@dataclass
class RunResult:
    """How a run stands.

    Attributes:
        id: The run.
        state: As in the summary: done, failed, cancelled, interrupted, budget; running or waiting while it lives.
        exit_code: What the command line exits with.
        error: ``{code, message, reason, hint}`` or None.
        phases: ``{name, state, seconds, artifact}`` each.
        tasks: ``{id, title, state, attempts, depends_on, files, evidence, review}`` each.
        usage: Tokens and money.
        parked: Work that waits for its time: ``{item, task, role, until, class, reason}`` each, the first first.
        budget: What it may spend, as ``Budget``.
        spent: ``{usd, tokens, calls, seconds}`` that count against it: what was used, and what was set aside for
            requests that a crash cut off.
        seconds: From submission to its end, or to now.
    """

    id: str
    state: str
    exit_code: int
    error: Json | None
    phases: list[Json]
    tasks: list[Json]
    usage: Json
    parked: list[Json]
    budget: Json
    spent: Json
    restarts: int
    resumes: int
    seconds: float
    model: str | None
    demo: bool
    workspace: str

    @property
    def artifacts(self) -> list[str]:
        """The accepted files, relative to the workspace."""
        return sorted({str(path) for task in self.tasks for path in cast(list[str], task["files"])})

    def summary(self) -> Json:
        """Return the summary line of ``--json``."""
        resumable = self.state in ("interrupted", "budget")
        return {
            "type": "summary",
            "schema": 1,
            "run": self.id,
            "state": self.state,
            "exit_code": self.exit_code,
            "model": self.model,
            "demo": self.demo,
            "workspace": self.workspace,
            "phases": list(self.phases),
            "tasks": list(self.tasks),
            "usage": self.usage,
            "parked": list(self.parked),
            "budget": self.budget,
            "spent": self.spent,
            "restarts": self.restarts,
            "resumes": self.resumes,
            "seconds": self.seconds,
            "error": self.error,
            "resume": f"mnemosyne resume {self.id}" if resumable else None,
        }

    def raise_for_state(self) -> None:
        """Raise unless the run is done.

        Raises:
            RunFailed: With the run's own code, reason and hint.
        """
        if self.state != "done":
            error = self.error or {}
            raise RunFailed(
                f"run {self.id} is {self.state}",
                code=str(error.get("code") or RunFailed.default_code),
                reason=": ".join(str(error[key]) for key in ("message", "reason") if error.get(key)),
                hint=str(error.get("hint") or f"mnemosyne show {self.id}"),
            )


@dataclass
class RunOverview:
    """One line of ``mnemosyne runs``.

    Attributes:
        state: As people see it: running only while its process lives, else interrupted (TRUTH-2).
        alive: Whether its process lives.
        pid: Of that process.
        options: What it was started with; never a key.
    """

    id: str
    state: str
    alive: bool
    pid: int | None
    prompt: str | None
    workspace: str
    phase: str
    created_at: str
    options: Json
    budget: Json


async def list_runs(store: Path) -> list[RunOverview]:
    """Return all runs of a store, oldest first."""
    rows = cast(list[Json], await _ask(await open_store(store), {"op": "runs"}))
    return [_overview(cast(Json, row["run"]), cast(Json, row["owner"])) for row in rows]


async def show_run(store: Path, run_id: str) -> RunResult:
    """Return how a run stands.

    Raises:
        InvalidInput: There is no such run (MN-0110).
    """
    found = await _snapshot(await open_store(store), run_id)
    return _told_silence(_result(found), cast(Json, found["owner"]))


async def read_agents(store: Path, run_id: str) -> list[Json]:
    """Return the agents of the process that works on a run, or worked on it last, by id.

    Each is what its events say of it (``agent_id``, ``role``, ``state``, ``generation``, ``restarts``, ``error_count``,
    ``last_error``, ``reason``, ``completed``, ``failed``, ``stale``), with what can be seen of it now laid over that:
    its state, and the ``item`` that it works on.

    Raises:
        InvalidInput: There is no such run (MN-0110).
    """
    return cast(list[Json], await _ask(await open_store(store), {"op": "agents", "run": run_id}))


async def post_command(store: Path, run_id: str, kind: str, reason: str = "requested") -> None:
    """Leave a command for the process that works on a run; it looks for commands every 0.2 s.

    Args:
        kind: ``drain SECONDS``; ``restart``, ``stop`` or ``release`` with an agent; ``scale ROLE COUNT``;
            ``add ROLE`` and, where it is not to be like the first ones, ``module:Class``.

    Raises:
        InvalidInput: There is no such run (MN-0110), nobody works on it (MN-0220), or it has no such agent (MN-0362).
    """
    await _tell(store, run_id, kind, reason)


def _told_silence(result: RunResult, owner: Json) -> RunResult:
    """A process that renews none of its leases works on nothing, though it lives (TRUTH-2)."""
    silent = owner.get("silent_seconds")
    if silent is None or result.state in _ENDED:
        return result
    error: Json = {
        "code": "MN-0365",
        "message": f"the process of run {result.id} is silent",
        "reason": f"it lives (pid {owner['pid']}), but has renewed none of its leases for {cast(float, silent):.0f} s",
        "hint": f"kill -CONT {owner['pid']}, or end it and run: mnemosyne resume {result.id}",
    }
    return replace(result, state="interrupted", exit_code=_exit_code("interrupted", error), error=error)


async def read_evidence(store: Path, run_id: str, task_id: str) -> Json:
    """Return everything that was seen and said of a task: ``task`` as in the summary, ``requirements``, ``attempts``.

    Each attempt has ``attempt``, ``verdict``, ``base``, ``commit``, ``summary`` (the executor's words), ``feedback``,
    ``evidence`` (with the output of its commands) and ``review``. The last one may be under way.

    Raises:
        InvalidInput: There is no such run (MN-0110) or task (MN-0121).
    """
    handle = await open_store(store)
    snapshot = cast(Json, (await _snapshot(handle, run_id))["snapshot"])
    tasks = {str(cast(Json, task["spec"])["id"]): task for task in cast(list[Json], snapshot["tasks"])}
    if task_id not in tasks:
        raise InvalidInput(
            f"run {run_id} has no task {task_id!r}",
            code="MN-0121",
            reason=f"its tasks are {', '.join(tasks)}" if tasks else "it has none",
            hint=f"mnemosyne show {run_id}",
        )
    task = tasks[task_id]
    ended = cast(list[Json], await _ask(handle, {"op": "attempts", "run": run_id, "task": task_id}))
    if task["state"] not in _NEVER_BEGUN and task["attempt"] not in [one["attempt"] for one in ended]:
        under_way = {key: task[key] for key in ("attempt", "summary", "evidence", "review")}
        base, commit = cast(list[JsonValue], task["commit"] or [None, None])
        verdict = task["state"]
        ended = [*ended, {**under_way, "verdict": verdict, "base": base, "commit": commit, "feedback": None}]
    spec = cast(Json, cast(Json, snapshot["run"])["spec"] or {})
    known = _dicts(spec.get("requirements"))
    return {
        "task": _task(task),
        "requirements": _requirements(task, {str(one.get("id")): str(one.get("text", "")) for one in known}),
        "attempts": list[JsonValue](ended),
    }


async def cancel_run(store: Path, run_id: str, reason: str) -> None:
    """Cancel a run from outside: its own process is told if it lives, else the store is changed here.

    Raises:
        InvalidInput: There is no such run (MN-0110).
    """
    await _tell(store, run_id, "cancel", reason)


async def pause_run(store: Path, run_id: str, reason: str) -> None:
    """Ask the process that works on a run to pause it.

    Raises:
        InvalidInput: There is no such run (MN-0110), or nobody works on it (MN-0220).
    """
    await _tell(store, run_id, "pause", reason)


async def unpause_run(store: Path, run_id: str) -> None:
    """Ask the process that works on a run to go on with it.

    Raises:
        InvalidInput: There is no such run (MN-0110), or nobody works on it (MN-0220).
    """
    await _tell(store, run_id, "continue", "requested")


async def _tell(store: Path, run_id: str, kind: str, reason: str) -> None:
    await _ask(await open_store(store), {"op": "tell", "run": run_id, "kind": kind, "reason": reason})


async def sum_up(store: Path) -> Json:
    """Return the sums over all events of a store, see ``StoreStats``."""
    return cast(Json, await _ask(await open_store(store), {"op": "stats"}))


async def list_dead_letters(store: Path) -> list[Json]:
    """Return the items that took their agents down too often, oldest first: ``{item, problem, died_at}`` each."""
    return cast(list[Json], await _ask(await open_store(store), {"op": "dead_letters"}))


async def requeue_dead_letter(store: Path, item: str, reason: str) -> None:
    """Give a dead letter to the queue again, with its crashes forgotten.

    Raises:
        InvalidInput: It is none (MN-0218), belongs to a run (MN-0117), or another item has its unique key (MN-0106).
    """
    await _ask(await open_store(store), {"op": "requeue", "item": item, "reason": reason})


async def discard_dead_letter(store: Path, item: str, reason: str) -> None:
    """Forget a dead letter, with its journal and its keys.

    Raises:
        InvalidInput: It is none (MN-0218) or belongs to a run (MN-0117).
    """
    await _ask(await open_store(store), {"op": "discard", "item": item, "reason": reason})


async def read_events(store: Path, run_id: str, *, since: int, follow: bool) -> AsyncIterator[Event]:
    """Yield a run's events after ``since``; with ``follow`` until the run ends.

    Raises:
        InvalidInput: There is no such run (MN-0110).
    """
    handle = await open_store(store)
    await _snapshot(handle, run_id)
    if follow:
        async for event in _follow(handle, run_id, since):
            yield event
        return
    while batch := await _events(handle, run_id, since, wait=False):
        for event in batch:
            yield event
        since = batch[-1].sequence


async def check_store(store: Path) -> Json:
    """Look at a store's file, every page of it, and return what is in it and what is wrong with it.

    Returns:
        ``bytes``, ``free_bytes``, ``runs``, ``items``, ``live_items``, ``events``, and ``findings``: texts, none if the
        store is sound.

    Raises:
        StoreUnavailable: It cannot be read, or is none.
    """
    return cast(Json, await _ask_file({"op": "check", "path": str(store)}))


async def backup_store(store: Path, to: Path) -> int:
    """Copy a store, also one that is in use, as it is at one moment; return the size of the copy in bytes.

    Raises:
        StoreUnavailable: It cannot be read or is damaged; there is something at ``to`` (MN-0214), or it cannot be
            written.
    """
    return cast(int, cast(Json, await _ask_file({"op": "backup", "path": str(store), "to": str(to)}))["bytes"])


async def prune_store(store: Path, ended_before: datetime) -> Json:
    """Forget what ended before a time: runs with their trees, items, and their events.

    Returns:
        ``items``, ``runs``, ``events``, ``trees``: how many went.

    Raises:
        StoreUnavailable: It cannot be written.
    """
    handle = await open_store(store)
    before = int(ended_before.timestamp() * 1000)
    pruned = cast(Json, await _ask(handle, {"op": "prune", "ended_before": before, "runs": True}))
    rows = cast(list[Json], await _ask(handle, {"op": "runs"}))
    known = {str(cast(Json, row["run"])["id"]) for row in rows}
    # After the rows: a tree without a run is found here the next time, a run without its tree would be half a run.
    trees = await asyncio.to_thread(_forget_trees, state_directory(store) / "runs", known, ended_before.timestamp())
    return {"items": pruned["items"], "runs": pruned["runs"], "events": pruned["events"], "trees": trees}


def _forget_trees(folder: Path, known: set[str], before: float) -> int:
    forgotten = 0
    for tree in folder.iterdir() if folder.is_dir() else ():
        # A run that is just being submitted has a folder, but a young one, before it has a row.
        if tree.name not in known and tree.is_dir() and tree.stat().st_mtime < before:
            shutil.rmtree(tree)
            forgotten += 1
    return forgotten


async def _ask_file(request: Json) -> object:
    from mnemosyne import _core

    return await mailbox().call(lambda port, ticket: _core.file(port, ticket, request))


async def read_all_events(store: Path) -> AsyncIterator[Event]:
    """Yield every event of a store so far, of runs, of agents and of work that belongs to no run, in sequence."""
    handle, since = await open_store(store), 0
    while batch := await _events(handle, None, since, wait=False):
        for event in batch:
            yield event
        since = batch[-1].sequence


async def read_journals(store: Path, run_id: str, subject: str) -> list[Json]:
    """Return what was done for a task of a run, or for a phase by its name: one journal for each item, oldest first.

    Returns:
        ``{item, kind, role, attempt, state, claims, steps}`` each; what the steps say is read by
        ``mnemosyne.llm.transcript``. Empty for what has not begun.

    Raises:
        InvalidInput: There is no such run (MN-0110), or neither a task nor a phase of that name in it (MN-0430).
    """
    handle = await open_store(store)
    snapshot = cast(Json, (await _snapshot(handle, run_id))["snapshot"])
    tasks = [str(cast(Json, task["spec"])["id"]) for task in cast(list[Json], snapshot["tasks"])]
    phases = [str(phase["name"]) for phase in cast(list[Json], snapshot["phases"])]
    if subject not in (*tasks, *phases):
        raise InvalidInput(
            f"run {run_id} has neither a task nor a phase {subject!r}",
            code="MN-0430",
            reason=f"its tasks are: {', '.join(tasks) or 'none yet'}; its phases are: {', '.join(phases)}",
            hint=f"mnemosyne show {run_id}",
        )
    return cast(list[Json], await _ask(handle, {"op": "journals", "run": run_id, "subject": subject}))


def _refuse_with_reasons(item: WorkItem) -> None:
    from mnemosyne.validation import validate_work_item

    validate_work_item(item).raise_for_errors()


async def open_store(path: Path, *, crash_safe: bool = False) -> Handle:
    """Open a store without a tree: to look, and to tell others."""
    from mnemosyne import _core

    store = path.expanduser().absolute()
    return cast("Handle", await mailbox().call(lambda port, ticket: _core.store(port, ticket, store, crash_safe)))


async def _ask(handle: Handle, request: Json) -> object:
    return await mailbox().call(lambda port, ticket: handle.store(port, ticket, request))


async def _snapshot(handle: Handle, run_id: str) -> Json:
    return cast(Json, await _ask(handle, {"op": "run", "run": run_id}))


async def _events(handle: Handle, run_id: str | None, since: int, *, wait: bool) -> list[Event]:
    request: Json = {
        "op": "events",
        "since": since,
        "run": run_id,
        "agent": None,
        "limit": EVENTS_AT_A_TIME,
        "wait": wait,
    }
    return [Event.model_validate(entry) for entry in cast(list[object], await _ask(handle, request))]


async def _follow(handle: Handle, run_id: str, since: int) -> AsyncIterator[Event]:
    while True:
        batch = await _events(handle, run_id, since, wait=True)
        for event in batch:
            since = event.sequence
            yield event
        if batch and not any(event.kind in _END_KINDS and event.run == run_id for event in batch):
            continue
        # An end that a resume followed is history; and a process that was killed says no last word.
        if _result(await _snapshot(handle, run_id)).state in _ENDED:
            while batch := await _events(handle, run_id, since, wait=False):
                for event in batch:
                    since = event.sequence
                    yield event
            return


async def _stop(handle: Handle, run_id: str, problem: MnemosyneError | None) -> None:
    said = problem or EnvironmentProblem("the run was interrupted", code="MN-0702", hint=f"mnemosyne resume {run_id}")
    kind = "environment" if isinstance(said, EnvironmentProblem) else "closed"
    wire: Json = {"kind": kind, **said.to_dict()}
    request: Json = {"op": "stop_run", "run": run_id, "state": "interrupted", "problem": wire}
    await mailbox().call(lambda port, ticket: handle.tree(port, ticket, request))


def _overview(run: Json, owner: Json) -> RunOverview:
    created = datetime.fromtimestamp(cast(int, run["created_at"]) / 1000, UTC)
    return RunOverview(
        id=str(run["id"]),
        state="interrupted" if _silent(run, owner) else _visible_state(run, owner),
        alive=bool(owner["alive"]) and run["state"] not in _ENDED,
        pid=cast(int | None, owner["pid"]),
        prompt=cast(str | None, run["prompt"]),
        workspace=str(run["workspace"]),
        phase=str(run["phase"]),
        created_at=created.isoformat(timespec="seconds").replace("+00:00", "Z"),
        options=cast(Json, run["options"]),
        budget=cast(Json, run["budget"]),
    )


def _silent(run: Json, owner: Json) -> bool:
    return run["state"] not in _ENDED and owner.get("silent_seconds") is not None


def _visible_state(run: Json, owner: Json) -> str:
    state = str(run["state"])
    return "interrupted" if state not in _ENDED and not owner["alive"] else state


def _result(found: Json) -> RunResult:
    snapshot, owner = cast(Json, found["snapshot"]), cast(Json, found["owner"])
    run = cast(Json, snapshot["run"])
    options = cast(Json, run["options"])
    state = _visible_state(run, owner)
    error = cast(Json | None, run["error"])
    usage = cast(Json, snapshot["usage"])
    ended = run["ended_at"] or int(datetime.now(UTC).timestamp() * 1000)
    return RunResult(
        id=str(run["id"]),
        state=state,
        exit_code=_exit_code(state, error),
        error=error,
        phases=[_phase(phase) for phase in cast(list[Json], snapshot["phases"])],
        tasks=[_task(task) for task in cast(list[Json], snapshot["tasks"])],
        usage={**usage, "unknown_turns": snapshot["unknown_turns"]},
        parked=cast(list[Json], snapshot["parked"]),
        budget=cast(Json, run["budget"]),
        spent=cast(Json, snapshot["spent"]),
        restarts=cast(int, snapshot["restarts"]),
        resumes=cast(int, run["resumes"]),
        seconds=round((cast(int, ended) - cast(int, run["created_at"])) / 1000, 3),
        model=cast(str | None, options["model"]),
        demo=bool(options["demo"]),
        workspace=str(run["workspace"]),
    )


def _exit_code(state: str, error: Json | None) -> int:
    if state == "interrupted":
        return _ENVIRONMENT if error and str(error["code"]).startswith("MN-02") else _SIGNAL
    return _EXIT_CODES.get(state, 0)


def _phase(phase: Json) -> Json:
    started, ended = phase["started_at"], phase["ended_at"]
    seconds = None
    if isinstance(started, int) and isinstance(ended, int):
        seconds = round((ended - started) / 1000, 3)
    return {"name": phase["name"], "state": phase["state"], "seconds": seconds, "artifact": phase["artifact"]}


_NEVER_BEGUN = frozenset({"blocked", "ready", "skipped"})
_EVIDENCE_KEYS = ("kind", "command", "exit_code", "before_exit_code", "seconds", "path", "change", "sha256")


def _task(task: Json) -> Json:
    spec, review = cast(Json, task["spec"]), cast(Json | None, task["review"])
    evidence = [_seen(entry) for entry in cast(list[Json], task["evidence"])]
    shown: Json | None = None
    if review is not None:
        shown = {key: review.get(key) for key in ("passed", "confidence", "feedback")}
        shown["requirements"] = [_judged(one) for one in _dicts(review.get("requirements"))]
    return {
        "id": spec["id"],
        "title": spec["title"],
        "state": task["state"],
        "attempts": 0 if task["state"] in _NEVER_BEGUN else task["attempt"],
        "depends_on": spec["depends_on"],
        "files": task["files"],
        "evidence": cast(JsonValue, evidence),
        "review": shown,
    }


def _seen(entry: Json) -> Json:
    # The output of a command is for those who ask for it; what was seen without one is said here.
    output = None if entry.get("command") else entry.get("output") or None
    return {**{key: entry.get(key) for key in _EVIDENCE_KEYS}, "output": output}


def _requirements(task: Json, texts: Mapping[str, str]) -> list[JsonValue]:
    """What the reviewer said of each requirement; of a task that was never judged, nothing."""
    review = task["review"]
    judged = _dicts(review.get("requirements")) if isinstance(review, dict) else []
    spec = cast(Json, task["spec"])
    texts = {str(spec["id"]): str(spec["description"] or spec["title"]), **texts}
    return [{**_judged(one), "text": texts.get(str(one.get("id")), "")} for one in judged]


def _judged(one: Json) -> Json:
    """One requirement as an agent judged it; the agent may be anybody's."""
    return {"id": str(one.get("id", "")), "met": one.get("met") is True, "reason": str(one.get("reason", ""))}


def _dicts(value: JsonValue) -> list[Json]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
