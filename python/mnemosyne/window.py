"""The window: HTTP on loopback over a store, for who looks at what agents do and tells them what to do.

Rust serves it (``rust/server``). What only Python can judge, prompts, plans, workspaces and prices, comes here as an
order: the same checks as on the command line, the same errors, and an orchestra that does the work.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, JsonValue

from mnemosyne.config.settings import state_directory
from mnemosyne.errors import (
    BridgeClosed,
    EnvironmentProblem,
    InvalidInput,
    MissingCredential,
    MnemosyneError,
    StoreUnavailable,
)
from mnemosyne.mailbox import mailbox
from mnemosyne.models import Budget, Plan, WorkItem
from mnemosyne.redaction import redact
from mnemosyne.validation import check_prompt, read_form, read_json, validate_work_item, validate_work_plan

if TYPE_CHECKING:
    from mnemosyne.orchestra import Orchestra, Run

__all__ = ["Window"]

Json = dict[str, JsonValue]


class _RunOrder(BaseModel):
    """The body of ``POST /runs``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    workspace: str
    prompt: str | None = None
    plan: JsonValue = None
    budget: JsonValue = None
    idempotency_key: str | None = None


class _ItemOrder(BaseModel):
    """The body of ``POST /items``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    item: JsonValue
    idempotency_key: str | None = None
    unique_key: str | None = None
    delay: float = 0.0
    deadline: float | None = None


class Window:
    """An open window; an async context manager.

    Args:
        store: What it shows.
        port: Of loopback; 0 is any free one.
        orchestra: Returns who does the work that comes in, opened when the first is asked for.

    Raises:
        EnvironmentProblem: On entering: the port is taken (MN-0710), or the token's file cannot be used (MN-0713).
        StoreUnavailable: On entering: the store cannot be opened.
    """

    def __init__(self, store: Path, port: int, orchestra: Callable[[], Awaitable[Orchestra]]) -> None:
        from mnemosyne import _core

        self._store, self._port, self._orchestra = store.expanduser().absolute(), port, orchestra
        self._window = _core.Window()
        self._taking: asyncio.Task[None] | None = None
        self._orders: set[asyncio.Task[None]] = set()
        self.url = ""
        self.token_file = state_directory(self._store) / "authorization"
        self.runs: list[Run] = []
        """Runs that came in here."""

    async def __aenter__(self) -> Self:
        from mnemosyne.orchestra import open_store

        handle, path = await open_store(self._store), str(self._store)
        opened = await mailbox().call(lambda port, ticket: self._window.open(port, ticket, handle, path, self._port))
        self.url = f"http://127.0.0.1:{cast(Json, opened)['port']}/"
        self._taking = asyncio.create_task(self._take())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._window.close()
        tasks = [*self._orders, *([self._taking] if self._taking else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self) -> None:
        """Each order is a task of its own: one that waits for a key or a disk holds up no other."""
        while (order := await mailbox().call(self._window.take)) is not None:
            task = asyncio.create_task(self._carry_out(cast(Json, order)))
            self._orders.add(task)
            task.add_done_callback(self._orders.discard)

    async def _carry_out(self, order: Json) -> None:
        number = cast(int, order["number"])
        try:
            answer = await self._answer(str(order["kind"]), str(order["body"]), cast(str | None, order["run"]))
        except MnemosyneError as problem:
            # Of 20,000 problems that takes seconds, in which others are answered.
            self._window.answer(number, "null", await asyncio.to_thread(_wire, problem))
        except Exception as error:
            logging.getLogger(__name__).exception("an order of the window failed")
            reason = "this is a fault of mnemosyne, or of a module it was given"
            found = MnemosyneError(f"unexpected {type(error).__name__}", code="MN-0900", reason=reason)
            self._window.answer(number, "null", _wire(found))
        else:
            self._window.answer(number, json.dumps(answer))

    async def _answer(self, kind: str, body: str, run: str | None) -> Json:
        if kind == "submit_item":
            return await self._submit_item(_read(_ItemOrder, body))
        if kind == "submit_run":
            return await self._submit_run(_read(_RunOrder, body))
        return await self._resume_run(str(run))

    async def _submit_item(self, order: _ItemOrder) -> Json:
        # Before anything is opened for it.
        validate_work_item(order.item).raise_for_errors()
        orchestra = await self._orchestra()
        work = await orchestra.submit_work(
            read_form(WorkItem, order.item, "work item", "MN-0117"),
            idempotency_key=order.idempotency_key,
            unique_key=order.unique_key,
            delay=order.delay,
            deadline=order.deadline,
        )
        return {"item": work.id}

    async def _submit_run(self, order: _RunOrder) -> Json:
        from mnemosyne.workspace import check_workspace

        # Without a prompt a plan that is null is a plan, and one that cannot be used.
        has_plan = order.plan is not None or (order.prompt is None and "plan" in order.model_fields_set)
        if has_plan == (order.prompt is not None):
            raise InvalidInput(
                "the request has either a prompt or a plan", code="MN-0715", hint="GET /openapi.json says what is taken"
            )
        goal: str | Plan
        if order.prompt is not None:
            check_prompt(order.prompt)
            goal = order.prompt
        else:
            (await asyncio.to_thread(validate_work_plan, order.plan)).raise_for_errors()
            goal = Plan.model_validate(order.plan)
        budget = None if order.budget is None else read_form(Budget, order.budget, "budget", "MN-0715")
        workspace = Path(order.workspace)
        if not workspace.is_absolute() or "\0" in order.workspace:
            raise InvalidInput(
                "the workspace is no absolute path", code="MN-0107", hint="name a folder that exists: /home/me/project"
            )
        await asyncio.to_thread(check_workspace, workspace)
        orchestra = await self._orchestra()
        run = await orchestra.submit(goal, workspace=workspace, budget=budget, idempotency_key=order.idempotency_key)
        self.runs.append(run)
        return {"run": run.id, "asked": "submit", "state": "running"}

    async def _resume_run(self, run_id: str) -> Json:
        from mnemosyne.orchestra import list_runs

        begun = next(run for run in await list_runs(self._store) if run.id == run_id)
        if begun.state in ("done", "failed", "cancelled"):  # before a key is looked for
            raise InvalidInput(
                f"the run {run_id} has ended: {begun.state}", code="MN-0116", hint=f"mnemosyne show {run_id}"
            )
        orchestra = await self._orchestra()
        if (differs := orchestra.differs_from(begun.options)) is not None:
            raise InvalidInput(
                f"run {run_id} cannot go on in this window",
                code="MN-0719",
                reason=f"it was begun with another {differs}",
                hint=f"mnemosyne resume {run_id}",
            )
        run = await orchestra.resume(run_id)
        self.runs.append(run)
        return {"run": run.id, "asked": "resume", "state": "running"}


_Order = TypeVar("_Order", bound=BaseModel)


def _read(order: type[_Order], body: str) -> _Order:
    try:
        form = read_json(body)
    except ValueError as error:
        raise InvalidInput(
            "the request cannot be read", code="MN-0102", reason=f"it is not JSON: {error}", hint="correct the body"
        ) from error
    return read_form(order, form, "request", "MN-0715")


_KINDS: tuple[tuple[type[MnemosyneError], str], ...] = (
    (InvalidInput, "invalid_input"),
    (MissingCredential, "credential"),
    (StoreUnavailable, "store"),
    (EnvironmentProblem, "environment"),
    (BridgeClosed, "closed"),
)


def _wire(problem: MnemosyneError) -> str:
    kind = next((name for of, name in _KINDS if isinstance(problem, of)), "agent")
    form: dict[str, object] = {"kind": kind, **{key: _said(text) for key, text in problem.to_dict().items()}}
    if isinstance(problem, InvalidInput) and problem.problems:
        form["data"] = {"problems": [{key: _said(text) for key, text in one.items()} for one in problem.problems]}
    return json.dumps(form)


def _said(text: str) -> str:
    """Without secrets, and without half characters, which JSON can hold and UTF-8 cannot."""
    return redact(text).encode("utf-8", "replace").decode("utf-8")
