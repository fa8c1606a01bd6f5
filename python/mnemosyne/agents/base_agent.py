"""What an agent is: a class with ``execute_work``. Everything else here is how the host calls it.

The context of the item at hand is a context variable, so an agent that works on several items at once sees the right
one in each, and an agent that hands its work to another (``create_agent("executor")``) need not hand it anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar, Token
from types import MappingProxyType, MethodType
from typing import TYPE_CHECKING, Any, Protocol, cast

from mnemosyne.errors import AgentError, BudgetExceeded, InvalidInput
from mnemosyne.log_context import say_what_it_is_about
from mnemosyne.redaction import redact

if TYPE_CHECKING:
    from pydantic import JsonValue

    from mnemosyne.agents.context import AgentContext

__all__ = [
    "AgentExecutionMixin",
    "ContextMaker",
    "blamed",
    "call_agent",
    "check_result",
    "current_context",
    "validate_environment",
    "work_at_hand",
    "working_on",
]


class ContextMaker(Protocol):
    """Makes a context when it is first asked for: most agents never ask, and it costs more than a short call."""

    def make_context(self, slot: int, seat: int) -> AgentContext:
        """Return the context of the work in ``slot``, the same one each time."""


# An AgentContext, or what it takes to make one.
_context: ContextVar[AgentContext | tuple[ContextMaker, int, int]] = ContextVar("mnemosyne_agent_context")
work_at_hand = _context.set
"""Make a context the current one for the rest of the running task."""
_at_work: ContextVar[tuple[object, ...]] = ContextVar("mnemosyne_agents_at_work", default=())
"""The agents that an item with a limit of depth was handed on through, the one at work last."""


class AgentExecutionMixin:
    """Base of an agent; a subclass writes ``execute_work``, and may write ``async def close(self)``.

    Made as ``cls()``; then the host sets ``config``. One object lives for one generation of the agent.
    """

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        own = cls.__dict__.get("execute_work")
        if inspect.isfunction(own):
            cls.execute_work = _counting_depth(own)  # type: ignore[method-assign]

    config: Mapping[str, JsonValue] = MappingProxyType({})
    """What the agent was configured with: ``model``, ``base_url``, ``api_key``, and keys of your own."""

    @property
    def context(self) -> AgentContext:
        """The context of the item at hand.

        Raises:
            AgentError: No work is at hand (MN-0314).
        """
        return current_context()

    async def execute_work(self, work_dict: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Do one work item. A plain ``def`` is run in a bounded pool of threads.

        Args:
            work_dict: A ``WorkItem`` as a dict.

        Returns:
            A ``WorkResult`` as a dict; ``success`` is required. ``{"success": False}`` says that
            the work could not be done well; an exception says that the agent is broken.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define execute_work")


def current_context() -> AgentContext:
    """Return the context of the item that the calling task or thread works on."""
    try:
        found = _context.get()
        return found[0].make_context(*found[1:]) if isinstance(found, tuple) else found
    except LookupError:
        raise AgentError(
            "there is no work at hand",
            code="MN-0314",
            reason="the context exists only while execute_work runs, and in what it starts",
            hint="read self.context inside execute_work",
        ) from None


def _about() -> Mapping[str, object]:
    """What a log line of the calling task is about."""
    try:
        context = current_context()
    except (AgentError, LookupError):  # no work, or direct work that has ended meanwhile
        return {}
    return {
        "run": context.run.id if context.run is not None else None,
        "item": context.item.id,
        "attempt": context.attempt,
        "role": context.item.role.value,
        "agent": context.agent_id or None,
        "generation": context.generation,
        "epoch": context.epoch or None,
    }


say_what_it_is_about(_about)


@contextlib.contextmanager
def working_on(context: AgentContext) -> Iterator[None]:
    """Make ``context`` the current one inside the block."""
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)


def _counting_depth(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an ``execute_work``, so that whoever calls it from another's is known to hand its item on."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def execute_work(agent: object, *arguments: object, **named: object) -> object:
            token = _one_deeper(agent)
            if token is None:
                return await function(agent, *arguments, **named)
            try:
                return await function(agent, *arguments, **named)
            finally:
                _at_work.reset(token)

    else:

        @functools.wraps(function)
        def execute_work(agent: object, *arguments: object, **named: object) -> object:
            token = _one_deeper(agent)
            if token is None:
                return function(agent, *arguments, **named)
            try:
                return function(agent, *arguments, **named)
            finally:
                _at_work.reset(token)

    execute_work._uncounted = function  # type: ignore[attr-defined]
    return execute_work


def uncounted(agent: AgentExecutionMixin) -> Callable[[dict[str, Any]], Any]:
    """Return the agent's ``execute_work`` without the count of depth, for direct work, which has no budget.

    The wrapper costs a coroutine and a look at the context for each item: 3 of 10 us of the loop's time when it was a
    context manager, in ``make bench-bridge`` on Python 3.12.
    """
    bound = agent.execute_work
    function = getattr(bound, "_uncounted", None)
    return bound if function is None else MethodType(function, agent)


def _one_deeper(agent: object) -> Token[tuple[object, ...]] | None:
    """Note that the agent is at work; None where nobody counts."""
    context = _context.get(None)
    # Direct work has no budget, and its context is not made for this.
    limit = None if context is None or isinstance(context, tuple) else context.depth_limit
    if limit is None:
        return None
    above = _at_work.get()
    if above and above[-1] is agent:
        return None  # an agent may call the method of its base class
    if len(above) >= limit:
        raise _too_deep(current_context(), limit)
    return _at_work.set((*above, agent))


def _too_deep(context: AgentContext, limit: int) -> BudgetExceeded:
    run = context.run.id if context.run is not None else ""
    return BudgetExceeded(
        f"{context.item.id} would be handed on to more agents than its budget allows",
        reason=f"the limit is {limit} deep, and one more was called",
        hint=f"mnemosyne resume {run} --budget-depth {limit + 1}",
        data={"kind": "depth", "level": "run", "name": "", "spent": limit, "limit": limit},
    )


def validate_environment() -> bool:
    """Print whether an agent of Claude could work here: a check mark or a cross for the SDK and for the key.

    Returns:
        Whether both are there. ``mnemosyne doctor`` looks at much more.
    """
    from mnemosyne.config.environment import check_key, check_sdk

    checks = [check_sdk(), check_key()]
    for check in checks:
        print(f"{'✓' if check.ok else '✗'} {check.name}: {check.detail}{'' if check.ok else f'; {check.fix}'}")
    return all(check.ok for check in checks)


async def call_agent(agent: AgentExecutionMixin, work_dict: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Call the agent and return its result as a complete ``WorkResult`` dict.

    What the agent raises passes unchanged, because by its class the runtime decides whom to charge: the error of a
    model charges nobody. Only ``InvalidInput`` is wrapped: raised by us it fails an item for good, and an agent's own
    ``ValueError`` must not.

    Raises:
        AgentError: What it returned is no result (MN-0307, the message names the keys), or it raised ``InvalidInput``,
            or ``CancelledError`` although nobody cancelled it.
    """
    try:
        if inspect.iscoroutinefunction(agent.execute_work):
            returned: object = await agent.execute_work(work_dict)
        else:
            returned = await _in_thread(agent, work_dict)
    except (InvalidInput, asyncio.CancelledError) as error:
        if (blame := blamed(type(agent).__name__, error)) is error:
            raise
        raise blame from error
    return check_result(type(agent).__name__, returned)


def blamed(name: str, error: BaseException) -> BaseException:
    """Return what an exception that an agent raised is taken for: itself, but for the two that would charge nobody."""
    if isinstance(error, InvalidInput):
        blame = AgentError(error.message, code=error.code, reason=error.reason, hint=error.hint)
    elif isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is None or task.cancelling():
            return error
        # Something that it awaited was cancelled. As a cancellation, which costs nobody anything, it would be tried
        # again at once and for ever.
        blame = AgentError(
            f"{name} raised CancelledError, but its work was not cancelled",
            hint="catch the CancelledError of what execute_work awaits",
        )
    else:
        return error
    blame.__cause__ = error
    return blame


async def _in_thread(agent: AgentExecutionMixin, work_dict: dict[str, JsonValue]) -> object:
    returned = await current_context().run_blocking(functools.partial(_call, agent, work_dict))
    # A plain function may still hand back something to await, a wrapper around a coroutine function for one.
    return await returned if inspect.isawaitable(returned) else returned


def _call(agent: AgentExecutionMixin, work_dict: dict[str, JsonValue]) -> object:
    try:
        return agent.execute_work(work_dict)
    except StopIteration as error:
        # A future refuses this one exception, and whoever waits for it would wait for ever; a coroutine does the same.
        raise RuntimeError(f"{type(agent).__name__}.execute_work raised StopIteration") from error


def check_result(name: str, returned: object) -> dict[str, JsonValue]:
    """Return what an agent returned as a complete ``WorkResult`` dict.

    Raises:
        AgentError: It is no result (MN-0307).
    """
    from pydantic import ValidationError

    from mnemosyne.models import WorkResult

    if isinstance(returned, WorkResult):
        returned = returned.model_dump()
    if not isinstance(returned, dict):
        raise AgentError(
            f"{name}.execute_work returned {type(returned).__name__}, not a dict",
            code="MN-0307",
            hint='return {"success": True, "data": {...}}',
        )
    try:
        # Strict: "no" for success would otherwise become a boolean, and which one is for the agent to say (TRUTH-1).
        result = WorkResult.model_validate(returned, strict=True)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise AgentError(
            f"{name}.execute_work returned a dict that is not a result: {'; '.join(problems)[:1000]}",
            code="MN-0307",
            hint="the keys are success (required), data, artifacts, evidence, error, usage",
        ) from error
    if result.error:
        result.error = redact(result.error)  # the store keeps it, and later attempts are told (SECRET-1)
    # Not mode="json": it would quietly replace what UTF-8 has no form for, and the border is to refuse it.
    return cast("dict[str, JsonValue]", result.model_dump())
