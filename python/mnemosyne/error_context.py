"""What went wrong, where, and what to do about it: one object for one failure, as a box for people and as JSON.

``create_error_context`` gathers what is known at the place where an exception is caught. The advice is chosen by the
class of the error *and* by the phase: a model that gives an unusable answer wants a clearer prompt while the
specification is written, and a smaller task while files are made. Every command in the advice can be typed (a test
asks the parser), and nothing here shows a key: only the name of the place that it would come from (SECRET-1).
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from mnemosyne.errors import (
    AgentUnavailable,
    BudgetExceeded,
    EnvironmentProblem,
    Fenced,
    InvalidInput,
    MissingCredential,
    MnemosyneError,
    ModelError,
    ModelParked,
    ModelRefused,
    StoreUnavailable,
    WorkTimeout,
)
from mnemosyne.names import AgentRole, Phase
from mnemosyne.redaction import redact

if TYPE_CHECKING:
    from pydantic import JsonValue

    from mnemosyne.models import WorkItem

__all__ = ["Environment", "ErrorContext", "create_error_context"]

_WIDTH = 78
"""Columns of the box: it fits the narrowest usual terminal, and a log line before it."""
_MOST_SAID = 600
"""Characters of a message or a reason; the rest is in the traceback."""
_STDERR_LINES = 8
"""Of a worker's standard error, the last ones: the first of many is seldom the cause."""


@dataclass(frozen=True)
class Environment:
    """What the process ran on; all of it may be shown to anybody.

    Attributes:
        python: The version of the interpreter.
        sdk: The version of the ``anthropic`` package, or None where it is not installed.
        key_source: The name of the place that holds the key, never the key; None where there is none.
        platform: Operating system, release and machine.
        free_disk_bytes: On the file system of the current folder; None where it cannot be asked.
    """

    python: str
    sdk: str | None
    key_source: str | None
    platform: str
    free_disk_bytes: int | None


@dataclass(frozen=True)
class ErrorContext:
    """One failure and everything that helps to understand it.

    Attributes:
        error_type: The name of the exception's class.
        message: What happened, without secrets.
        code: ``MN-####``; an exception that is none of ours is an agent's (MN-0301) where one was at work.
        reason: Why, or an empty string.
        item: Id of the work item, or None.
        description: What the item was to do.
        phase: The phase of the run.
        role: The role of the agent.
        agent: Id of the agent.
        generation: Of the agent.
        attempt: Of the item.
        session_active: Whether a conversation with the model was under way.
        environment: What the process ran on.
        worker_stderr: The last lines that the agent's worker process wrote to its standard error.
        troubleshooting: What to look at.
        recovery: What to do, the likeliest first.
    """

    error_type: str
    message: str
    code: str
    reason: str
    environment: Environment
    item: str | None = None
    description: str | None = None
    phase: Phase | None = None
    role: AgentRole | None = None
    agent: str | None = None
    generation: int | None = None
    attempt: int | None = None
    session_active: bool = False
    worker_stderr: tuple[str, ...] = ()
    troubleshooting: tuple[str, ...] = field(default=())
    recovery: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the same as JSON, with every field, also those without a value."""
        form = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in form.items()}

    def format(self) -> str:
        """Return the box: what happened, the work item, the agent, the environment, troubleshooting and recovery."""
        box = _Box(f"error[{self.code}]: {self.error_type}")
        box.text("What happened", [self.message, *([f"why: {self.reason}"] if self.reason else [])])
        box.pairs(
            "Work item",
            {"id": self.item, "task": self.description, "phase": self.phase, "attempt": self.attempt},
        )
        session = "active" if self.session_active else "none"
        box.pairs(
            "Agent", {"id": self.agent, "role": self.role, "generation": self.generation, "model session": session}
        )
        known = self.environment
        free = None if known.free_disk_bytes is None else f"{known.free_disk_bytes / 1e9:.1f} GB"
        box.pairs(
            "Environment",
            {
                "python": known.python,
                "anthropic": known.sdk or "not installed",
                "key from": known.key_source or "nowhere",
                "platform": known.platform,
                "free disk": free,
            },
        )
        box.text("Last words of the worker", self.worker_stderr)
        box.text("Troubleshooting:", self.troubleshooting, "• ")
        box.text("Recovery:", self.recovery, "→ ")
        return box.whole()


def create_error_context(
    error: BaseException,
    *,
    item: WorkItem | None = None,
    agent_id: str | None = None,
    generation: int | None = None,
    run: str | None = None,
    task: str | None = None,
    session_active: bool = False,
    worker_stderr: str = "",
) -> ErrorContext:
    """Gather what is known about a failure.

    Args:
        error: The exception.
        item: What was worked on.
        agent_id: Who worked on it.
        generation: Of that agent.
        run: The run it belongs to, for the commands in the advice.
        task: The task of the plan it belongs to, for the same.
        session_active: Whether a conversation with the model was under way.
        worker_stderr: What the agent's worker process wrote to its standard error; its last lines are kept.
    """
    ours = error if isinstance(error, MnemosyneError) else None
    unknown = "MN-0900" if item is None and agent_id is None else "MN-0301"
    phase = None if item is None else item.phase
    advice = _advice(error, phase)
    names = {"RUN": run, "TASK": task}
    return ErrorContext(
        error_type=type(error).__name__,
        message=_said(ours.message if ours else _text_of(error)),
        code=ours.code if ours else unknown,
        reason=_said(ours.reason) if ours else "",
        environment=_environment(),
        item=None if item is None else item.id,
        description=None if item is None else _said(item.description),
        phase=phase,
        role=None if item is None else item.role,
        agent=agent_id,
        generation=generation,
        attempt=None if item is None else item.attempt,
        session_active=session_active,
        worker_stderr=tuple(_said(line) for line in worker_stderr.rstrip().splitlines()[-_STDERR_LINES:]),
        troubleshooting=tuple(_named(line, names) for line in advice.look),
        recovery=tuple(_named(line, names) for line in (*_own_hint(ours), *advice.do)),
    )


# -- advice --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Advice:
    look: tuple[str, ...] = ()
    do: tuple[str, ...] = ()

    def __add__(self, other: _Advice) -> _Advice:
        return _Advice((*self.look, *other.look), (*self.do, *other.do))


_BY_KIND: Mapping[str, _Advice] = {
    "input": _Advice(
        ("the message names the path and the value that cannot be used",), ("correct it and submit again",)
    ),
    "credential": _Advice(
        ("mnemosyne secrets status: which key is used, and is it the one for this server?",),
        ("mnemosyne config set-key, or export ANTHROPIC_API_KEY=..., or --api-key-file FILE", "mnemosyne resume RUN"),
    ),
    "store": _Advice(
        ("is the disk full, and may this user write the store's folder?",),
        ("make room or give permission; a running process goes on by itself", "else: mnemosyne resume RUN"),
    ),
    "disk": _Advice(
        ("df -h: is a file system full, or its quota used up?",), ("make room, then: mnemosyne resume RUN",)
    ),
    "environment": _Advice(("the message names what is missing or refuses",), ("mnemosyne resume RUN",)),
    "timeout": _Advice(
        ("did the agent wait for something, or block the loop with a plain call?",),
        ("give the item more time (timeout_seconds), or less work",),
    ),
    "unavailable": _Advice(
        ("mnemosyne events RUN: why did the agent go down or degrade?",),
        ("correct the cause; a degraded role is tried again by itself",),
    ),
    "import": _Advice(
        (
            "does the module lie in the folder from which mnemosyne was started, or on PYTHONPATH?",
            "is it installed into the environment that runs mnemosyne?",
        ),
        ("pip install what is missing, or correct --agent ROLE=module:Class",),
    ),
    "attribute": _Advice(
        ("does the agent use a name that this version of a class does not have, or a value that is None?",),
        ("mnemosyne orchestrate --debug shows the line; correct the agent",),
    ),
    "memory": _Advice(
        ("free -m: is memory used up by this process or by others?",),
        ("lower --max-concurrent, or give the agent less to read",),
    ),
    "fenced": _Advice(
        ("was the machine asleep or overloaded for longer than a lease, or the item cancelled?",),
        ("nothing has to be done: the newer claim goes on",),
    ),
    "parked": _Advice(
        ("the model's server is at its limit; nobody is charged for it",),
        ("nothing has to be done: the work goes on by itself when its time has come",),
    ),
    "refused": _Advice(
        ("mnemosyne show RUN --conversation TASK: what was the model asked?",),
        ("say it differently: mnemosyne retry RUN TASK --note TEXT",),
    ),
    "model": _Advice(
        ("is the server a Messages-compatible one, and does it know the model?",),
        ("the work is tried again by itself where that can help",),
    ),
    "budget": _Advice(
        ("mnemosyne show RUN: what was spent, and on which task?",), ("mnemosyne resume RUN --budget-usd X",)
    ),
    "agent": _Advice(
        ("the traceback in the log names the line of the agent",),
        ("correct the agent; after five errors within a minute it is replaced by a new one",),
    ),
}

_BY_PHASE: Mapping[tuple[str, Phase], _Advice] = {
    ("model", Phase.PROMPT_TO_SPEC): _Advice(
        ("does the prompt say what is to be made, where, and how one sees that it works?",),
        ("say it more clearly and begin again: mnemosyne orchestrate @FILE",),
    ),
    ("model", Phase.SPEC_TO_FULL_SPEC): _Advice(
        ("mnemosyne show RUN --conversation spec_to_full_spec: which requirement is unclear?",),
        ("say it more clearly and begin again: mnemosyne orchestrate @FILE",),
    ),
    ("model", Phase.FULL_SPEC_TO_PLAN): _Advice(
        ("mnemosyne show RUN --conversation full_spec_to_plan: what was wrong with the plan?",),
        ("write the plan yourself: mnemosyne orchestrate --plan FILE",),
    ),
    ("model", Phase.PLAN_TO_ARTIFACTS): _Advice(
        ("mnemosyne show RUN --conversation TASK: how far did it come?",),
        ("mnemosyne retry RUN TASK --note TEXT, or a smaller task",),
    ),
    ("agent", Phase.PLAN_TO_ARTIFACTS): _Advice(
        ("mnemosyne show RUN --evidence TASK: what did this attempt do before?",),
        ("mnemosyne retry RUN TASK, once the agent is corrected",),
    ),
    ("timeout", Phase.PLAN_TO_ARTIFACTS): _Advice(
        ("mnemosyne show RUN --conversation TASK: which command or turn took the time?",),
        ("give the acceptance command a larger timeout_seconds, or split the task",),
    ),
}


def _advice(error: BaseException, phase: Phase | None) -> _Advice:
    kind = _kind(error)
    advice = _BY_KIND[kind]
    if phase is None:
        return advice
    about = "agent" if kind in ("import", "attribute", "memory") else kind
    return advice + _BY_PHASE.get((about, phase), _Advice())


_KINDS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (MissingCredential, "credential"),
    (StoreUnavailable, "store"),
    (EnvironmentProblem, "environment"),
    (InvalidInput, "input"),
    (WorkTimeout, "timeout"),
    (AgentUnavailable, "unavailable"),
    (Fenced, "fenced"),
    (ModelParked, "parked"),
    (ModelRefused, "refused"),
    (ModelError, "model"),
    (BudgetExceeded, "budget"),
    (ImportError, "import"),
    (AttributeError, "attribute"),
    (MemoryError, "memory"),
    (TimeoutError, "timeout"),
)
"""The first that fits, so that a class stands before its base."""


def _kind(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk"
    return next((kind for classes, kind in _KINDS if isinstance(error, classes)), "agent")


_PLACEHOLDER = re.compile(r"\b(?:RUN|TASK)\b")


def _own_hint(error: MnemosyneError | None) -> tuple[str, ...]:
    # The place that raised it knows best what to type; the general advice comes after it.
    return (error.hint, f"mnemosyne explain {error.code}") if error is not None and error.hint else ()


def _named(line: str, names: Mapping[str, str | None]) -> str:
    return redact(_PLACEHOLDER.sub(lambda found: names[found[0]] or found[0], line))


# -- facts ---------------------------------------------------------------------------------------------------------


def _environment() -> Environment:
    from mnemosyne.config.secrets import key_source

    try:
        sdk: str | None = metadata.version("anthropic")
    except metadata.PackageNotFoundError:
        sdk = None
    try:
        free: int | None = shutil.disk_usage(Path.cwd()).free
    except OSError:
        free = None
    uname = os.uname()
    machine = f"{uname.sysname} {uname.release} {uname.machine}"
    return Environment(platform.python_version(), sdk, key_source(), machine, free)


def _text_of(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except BaseException:  # a __str__ of an agent's own, which may even want to exit
        return "it has no text"


def _said(text: str) -> str:
    shown = redact(text)
    return shown if len(shown) <= _MOST_SAID else f"{shown[:_MOST_SAID]}..."


# -- the box -------------------------------------------------------------------------------------------------------


class _Box:
    """Text in a frame of fixed width; what is empty leaves no trace."""

    def __init__(self, title: str) -> None:
        head = f"┌─ {title[: _WIDTH - 6]} "
        self._lines = [f"{head}{'─' * (_WIDTH - 1 - len(head))}┐"]

    def text(self, title: str, lines: Sequence[str], bullet: str = "") -> None:
        if lines:
            self._add(title)
        for line in lines:
            for at, part in enumerate(_wrapped(line, _WIDTH - 6 - len(bullet))):
                self._add(f"  {bullet if at == 0 else ' ' * len(bullet)}{part}")

    def pairs(self, title: str, pairs: Mapping[str, object]) -> None:
        known = {name: str(value) for name, value in pairs.items() if value is not None}
        width = max(map(len, pairs)) + 2
        if known:
            self._add(title)
        for name, value in known.items():
            for at, part in enumerate(_wrapped(value, _WIDTH - 6 - width)):
                self._add(f"  {(name if at == 0 else '').ljust(width)}{part}")

    def whole(self) -> str:
        return "\n".join([*self._lines, f"└{'─' * (_WIDTH - 2)}┘"])

    def _add(self, line: str) -> None:
        self._lines.append(f"│ {line.ljust(_WIDTH - 4)} │")


def _wrapped(text: str, width: int) -> list[str]:
    printable = "".join(char if char.isprintable() else " " for char in text)
    return textwrap.wrap(printable, width, break_on_hyphens=False) or [""]
