"""Every error a user can meet: a code, what happened, why, and the next command to type.

The tree of classes is the public contract. An error is written for a person at 3 a.m.: ``message`` says what
happened, ``reason`` why, ``hint`` what to do next. The command line prints exactly these three lines. No secret,
not even its prefix, may enter any of them (SECRET-1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pydantic import JsonValue

    from mnemosyne.models import Usage

__all__ = [
    "AgentError",
    "AgentUnavailable",
    "BridgeClosed",
    "BridgeFull",
    "BudgetExceeded",
    "EnvironmentProblem",
    "Fenced",
    "InvalidInput",
    "MissingCredential",
    "MnemosyneError",
    "ModelError",
    "ModelParked",
    "ModelRefused",
    "RunFailed",
    "StoreUnavailable",
    "WorkTimeout",
]


class MnemosyneError(Exception):
    """Base of every error raised by mnemosyne.

    Attributes:
        code: ``MN-####``; stable, so that it can be searched for.
        message: What happened, one sentence without a full stop.
        reason: Why, or an empty string where ``message`` says it all.
        hint: The next command or step, or an empty string.
    """

    default_code: ClassVar[str] = "MN-0900"

    def __init__(self, message: str, *, code: str | None = None, reason: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.reason = reason
        self.hint = hint

    def to_dict(self) -> dict[str, str]:
        """Return ``{"code", "message", "reason", "hint"}``, the form of ``error`` in ``--json``."""
        return {"code": self.code, "message": self.message, "reason": self.reason, "hint": self.hint}

    def format(self) -> str:
        """Return the lines that the command line prints."""
        lines = [f"error[{self.code}]: {self.message}"]
        if self.reason:
            lines.append(f"  why: {self.reason}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


class InvalidInput(MnemosyneError, ValueError):
    """What the user gave cannot be used; nothing was stored or spent. Exit code 2.

    Attributes:
        problems: Everything that is wrong, where a whole plan or item was judged (``mnemosyne.validation``): of
            each the ``code``, ``path``, ``value``, ``message`` and ``fix``.
    """

    default_code = "MN-0100"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        reason: str = "",
        hint: str = "",
        problems: Sequence[Mapping[str, str]] = (),
    ) -> None:
        super().__init__(message, code=code, reason=reason, hint=hint)
        self.problems = tuple(problems)


class EnvironmentProblem(MnemosyneError):
    """Something outside mnemosyne is missing or refuses. Exit code 3; a run stays resumable."""

    default_code = "MN-0200"


class MissingCredential(EnvironmentProblem):
    """No API key was found, or the server refused the one given."""

    default_code = "MN-0201"


class StoreUnavailable(EnvironmentProblem):
    """The store cannot be opened or written, or is not ours."""

    default_code = "MN-0203"


class AgentError(MnemosyneError):
    """An agent raised, or returned something that is not a result. ``__cause__`` is the original exception."""

    default_code = "MN-0301"


class WorkTimeout(AgentError, TimeoutError):
    """The work did not end within its time limit; its task was cancelled."""

    default_code = "MN-0302"


class AgentUnavailable(AgentError):
    """The agent cannot take work now.

    Attributes:
        retry_at: When trying again may help, in seconds since 1970; None where nobody knows.
    """

    default_code = "MN-0303"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        reason: str = "",
        hint: str = "",
        retry_at: float | None = None,
    ) -> None:
        super().__init__(message, code=code, reason=reason, hint=hint)
        self.retry_at = retry_at


class BridgeFull(MnemosyneError):
    """``try_send_work`` found no free place; nothing was queued."""

    default_code = "MN-0304"


class BridgeClosed(MnemosyneError):
    """The bridge was shut down."""

    default_code = "MN-0305"


class Fenced(MnemosyneError):
    """Another claim took this item over; this one must stop and can change nothing (FENCE-1)."""

    default_code = "MN-0306"


class ModelError(MnemosyneError):
    """The model, or the way to it, failed. Never charged to the agent's error window.

    Attributes:
        fatal: Asking again with the same request cannot help (400, 413, a refusal, an answer cut by its length limit).
        retry_after: Seconds the server asked to wait, or None.
        failure: The class (``mnemosyne.llm.failures``), for events and metrics; empty where it has none.
    """

    default_code = "MN-0400"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        reason: str = "",
        hint: str = "",
        fatal: bool = False,
        retry_after: float | None = None,
        failure: str = "",
    ) -> None:
        super().__init__(message, code=code, reason=reason, hint=hint)
        self.fatal = fatal
        self.retry_after = retry_after
        self.failure = failure


class ModelParked(ModelError):
    """The model's server needs longer than an agent may be held: the work waits without one, and nobody is charged.

    Attributes:
        seconds: After which the work is given out again.
    """

    default_code = "MN-0410"

    def __init__(
        self, message: str, *, code: str | None = None, reason: str = "", hint: str = "", failure: str, seconds: float
    ) -> None:
        super().__init__(message, code=code, reason=reason, hint=hint, retry_after=seconds, failure=failure)
        self.seconds = seconds


class ModelRefused(ModelError):
    """The model declined. Asking the same again would only be paid for again, so the item ends with its words."""

    default_code = "MN-0402"


class BudgetExceeded(MnemosyneError):
    """A reservation would exceed the budget; nothing was sent. Exit code 4; resumable with a larger budget.

    Attributes:
        data: ``kind`` (usd, tokens, calls, seconds, depth), ``level`` (run, task, agent), ``name`` (which one),
            ``spent``, ``limit``, and ``left``: ``{"tokens", "usd"}`` that would fit, None where there is no limit.
        usage: What was spent all the same, by an answer that the budget cut short.
    """

    default_code = "MN-0501"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        reason: str = "",
        hint: str = "",
        data: Mapping[str, JsonValue] | None = None,
        usage: Usage | None = None,
    ) -> None:
        super().__init__(message, code=code, reason=reason, hint=hint)
        self.data: Mapping[str, JsonValue] = data or {}
        self.usage = usage


class RunFailed(MnemosyneError):
    """Raised by ``RunResult.raise_for_state`` for a run that is not done."""

    default_code = "MN-0701"


_BY_KIND: Mapping[str, type[MnemosyneError]] = {
    "invalid_input": InvalidInput,
    "environment": EnvironmentProblem,
    "credential": MissingCredential,
    "store": StoreUnavailable,
    "agent": AgentError,
    "timeout": WorkTimeout,
    "unavailable": AgentUnavailable,
    "full": BridgeFull,
    "closed": BridgeClosed,
    "fenced": Fenced,
    "model": ModelError,
    "budget": BudgetExceeded,
}


def from_wire(error: Mapping[str, object]) -> MnemosyneError:
    """Build the exception for an error that came out of Rust.

    Args:
        error: ``{"kind", "code", "message", "reason", "hint"}``; ``retry_at`` where the kind is ``unavailable``.

    Returns:
        An instance of the class that ``kind`` names; ``MnemosyneError`` for a kind this version does not know.
    """
    kind = _BY_KIND.get(str(error.get("kind")), MnemosyneError)
    message, code = str(error.get("message", "")), str(error.get("code") or kind.default_code)
    reason, hint = str(error.get("reason") or ""), str(error.get("hint") or "")
    data = error.get("data")
    if kind is BudgetExceeded and isinstance(data, dict):
        return BudgetExceeded(message, code=code, reason=reason, hint=hint, data=data)
    if kind is InvalidInput:
        listed = data.get("problems") if isinstance(data, dict) else None
        problems = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        return InvalidInput(message, code=code, reason=reason, hint=hint, problems=problems)
    if kind is AgentUnavailable:
        retry_at = error.get("retry_at")
        seconds = float(retry_at) if isinstance(retry_at, int | float) else None
        return AgentUnavailable(message, code=code, reason=reason, hint=hint, retry_at=seconds)
    return kind(message, code=code, reason=reason, hint=hint)
