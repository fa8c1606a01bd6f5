"""What the user gave, read and refused early: nothing is stored, and nothing is asked of the network, before this."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnemosyne.errors import InvalidInput, StoreUnavailable
from mnemosyne.validation import LARGEST_TEXT, check_prompt, read_json, validate_work_plan

if TYPE_CHECKING:
    from pydantic import SecretStr

    from mnemosyne.cli.options import Options
    from mnemosyne.models import AgentRole, Budget, Plan
    from mnemosyne.validation import Finding

__all__ = [
    "find_modules_from_here",
    "read_agents",
    "read_budget",
    "read_key",
    "read_note",
    "read_plan",
    "read_prompt",
    "store_path",
]

_LARGEST_PLAN = 10_000_000
"""Bytes."""


def store_path(options: Options) -> Path:
    """Return the store that the flags and the environment name.

    Raises:
        StoreUnavailable: Nothing can be stored there: a folder or a pipe, or the way to it is barred (MN-0203).
    """
    from mnemosyne.config.settings import default_store

    try:
        store = options.store.absolute() if options.store else default_store()
    except RuntimeError as error:
        raise _no_store("MNEMOSYNE_STORE" if os.environ.get("MNEMOSYNE_STORE") else "default", str(error)) from error
    try:
        mode = store.stat().st_mode
    except FileNotFoundError:
        return store
    except OSError as error:
        raise _no_store(store, error.strerror or str(error)) from error
    if not stat.S_ISREG(mode):  # opening a pipe would wait for its writer
        raise _no_store(store, "it is a directory" if stat.S_ISDIR(mode) else "it is not a regular file")
    return store


def _no_store(store: Path | str, reason: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"the store {store} cannot be opened",
        code="MN-0203",
        reason=reason,
        hint="choose a file that you may read and write, with --store FILE",
    )


def read_prompt(given: str | None) -> str:
    """Return the prompt: the text itself, ``@FILE``, or ``-`` for stdin.

    Raises:
        InvalidInput: It is empty (MN-0101), or cannot be read, is too long or is no text (MN-0102).
    """
    text = _read_words("prompt", given or "")
    check_prompt(text)
    return text


def read_note(given: str) -> str:
    """Return a person's guidance: the text itself, ``@FILE``, or ``-`` for stdin.

    Raises:
        InvalidInput: It is empty, cannot be read, is too long or is no text (MN-0102).
    """
    text = _read_words("note", given)
    if not text.strip():
        raise _unreadable("note", "it is empty", hint='--note "what to do differently", or leave it out')
    return text


def _read_words(what: str, given: str) -> str:
    text = given
    if text == "@":
        raise _unreadable(what, "no file is named after @")
    if text == "-" or text.startswith("@"):
        text = _read_text(what, text.removeprefix("@"), LARGEST_TEXT)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _unreadable(what, "it is not valid UTF-8") from error
    if "\0" in text:
        raise _unreadable(what, "it holds a NUL character, so it is no text")
    return text


def read_plan(source: str) -> tuple[Plan, Sequence[Finding]]:
    """Return the plan in a file, or on stdin for ``-``, and what is better asked again about it.

    Raises:
        InvalidInput: It cannot be read (MN-0102), or cannot be carried out; all that is wrong is told with its path
            (MN-0103 to MN-0106, MN-0120).
    """
    from mnemosyne.models import Plan

    text = _read_text("plan", source, _LARGEST_PLAN)
    try:
        content = read_json(text)
    except ValueError as error:
        raise _unreadable("plan", f"it is not JSON: {error}", hint="correct the file; nothing was stored") from error
    report = validate_work_plan(content)
    report.raise_for_errors()
    return Plan.model_validate(content), report.warnings


def read_agents(given: Sequence[str]) -> dict[AgentRole, str]:
    """Return role -> ``module:Class``. Whether the class can be imported is not asked: the role degrades and recovers.

    Raises:
        InvalidInput: A value is not of the form ``ROLE=module:Class``, or a role is given twice (MN-0109).
    """
    from mnemosyne.models import AgentRole

    agents: dict[AgentRole, str] = {}
    for text in given:
        name, _, source = text.partition("=")
        if name not in list(AgentRole):
            raise _bad_agent(text, f"there is no role {name!r}; the roles are {', '.join(AgentRole)}")
        if not _names_a_class(source):
            raise _bad_agent(text, f"{source!r} is not of the form module:Class")
        if AgentRole(name) in agents:
            raise _bad_agent(text, f"the role {name} is given twice")
        agents[AgentRole(name)] = source
    return agents


def read_class(source: str) -> str:
    """Return ``module:Class``, unchanged; as with ``read_agents`` it is not imported here.

    Raises:
        InvalidInput: It is not of that form (MN-0109).
    """
    if not _names_a_class(source):
        raise _bad_agent(source, f"{source!r} is not of the form module:Class")
    return source


def find_modules_from_here() -> None:
    """Let ``--agent`` find modules in the current folder.

    At the end of the path: a workspace may well hold a file called like a module that we have yet to import.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)


def read_budget(options: Options, model: str | None) -> Budget | None:
    """Return the budget of the flags, or None where there is none.

    Raises:
        InvalidInput: A limit in dollars for a model without a known price: it could not be kept (MN-0119).
    """
    from mnemosyne.llm.prices import check_priced
    from mnemosyne.models import Budget

    limits = {name: getattr(options, f"budget_{name}") for name in Budget.model_fields}
    given = {name: value for name, value in limits.items() if value is not None}
    if not given:
        return None
    budget = Budget.model_validate(given)
    if model is not None:
        check_priced(budget, [model])
    return budget


def read_key(file: Path | None, base_url: str | None, model: str | None) -> SecretStr | None:
    """Return the key of ``--api-key-file``; None where there is none, and it is looked for later."""
    if file is None:
        return None
    from mnemosyne.config.secrets import SecretsManager

    return SecretsManager(file, base_url, model).resolve()


def _read_text(what: str, source: str, most: int) -> str:
    try:
        if source == "-":
            data = sys.stdin.buffer.read(most + 1) if sys.stdin else b""
        else:
            with Path(source).expanduser().open("rb") as file:
                data = file.read(most + 1)  # no more: it may be a device without an end
        if len(data) > most:
            raise _unreadable(
                what,
                f"{_called(source)} holds more than {most:,} bytes",
                hint="put long material into files of the workspace, and say where it is",
            )
        return data.decode("utf-8-sig")
    except InvalidInput:
        raise
    except UnicodeDecodeError as error:
        raise _unreadable(what, f"{_called(source)} is not UTF-8") from error
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in a path, a user whose home is unknown
        raise _unreadable(what, f"{_called(source)}: {getattr(error, 'strerror', None) or error}") from error


def _called(source: str) -> str:
    return "stdin" if source == "-" else repr(source)


def _unreadable(what: str, reason: str, hint: str = "name a readable UTF-8 file, or - for stdin") -> InvalidInput:
    return InvalidInput(f"the {what} cannot be read", code="MN-0102", reason=reason, hint=hint)


def _bad_agent(text: str, reason: str) -> InvalidInput:
    return InvalidInput(
        f"the agent {text!r} cannot be used", code="MN-0109", reason=reason, hint="--agent executor=my_agents:Mine"
    )


def _names_a_class(source: str) -> bool:
    module, separator, name = source.partition(":")
    parts = [*module.split("."), *name.split(".")]
    return bool(separator) and all(part.isidentifier() for part in parts)
