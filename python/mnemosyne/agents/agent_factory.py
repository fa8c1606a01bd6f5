"""How agents are made: ours by role, anybody's by ``package.module:Class``."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from mnemosyne.agents.base_agent import AgentExecutionMixin
from mnemosyne.errors import AgentUnavailable, InvalidInput
from mnemosyne.names import AgentRole

if TYPE_CHECKING:
    from pydantic import JsonValue

__all__ = ["DEFAULT_SOURCES", "create_agent", "make_agent", "resolve_source"]

DEFAULT_SOURCES: Mapping[AgentRole, str] = MappingProxyType(
    {role: f"mnemosyne.agents.{role.value}:{role.value.title()}Agent" for role in AgentRole}
)
"""The class that plays a role unless another is named."""


def create_agent(role: AgentRole | str, config: Mapping[str, JsonValue] | None = None) -> AgentExecutionMixin:
    """Make the built-in agent of a role, for instance to hand work on to it from an agent of your own.

    Args:
        role: Whose agent.
        config: ``model``, ``base_url``, ``api_key``. Without a server or key of its own it uses those of the agent that
            it works for.

    Raises:
        InvalidInput: There is no such role (MN-0153).
    """
    try:
        source = DEFAULT_SOURCES[AgentRole(role)]
    except ValueError:
        known = ", ".join(AgentRole)
        raise InvalidInput(f"there is no role {role!r}", code="MN-0153", hint=f"the roles are {known}") from None
    return make_agent(source, config)


def make_agent(
    source: str | type[AgentExecutionMixin], config: Mapping[str, JsonValue] | None = None
) -> AgentExecutionMixin:
    """Make an agent from its source: ``cls()``, then its ``config`` is set.

    Raises:
        AgentUnavailable: It cannot be imported or constructed; the reason says why.
    """
    found = resolve_source(source)
    name = f"{found.__module__}:{found.__qualname__}"
    try:
        agent = found()
        agent.config = MappingProxyType(dict(config or {}))
    except Exception as error:
        raise _unavailable(name, f"its constructor raised {type(error).__name__}: {error}") from error
    return agent


def resolve_source(source: str | type[AgentExecutionMixin]) -> type[AgentExecutionMixin]:
    """Return the class that ``source`` names.

    May be asked again after a failure: a module that failed to give the class is imported anew, so that a corrected
    file is enough and no restart of the process is needed.

    Raises:
        InvalidInput: ``source`` is not of the form ``package.module:Class`` (MN-0109).
        AgentUnavailable: The module or the class cannot be loaded (MN-0309).
    """
    if not isinstance(source, str):
        return _checked(source, getattr(source, "__qualname__", repr(source)))
    module_name, separator, path = source.partition(":")
    if (
        not separator
        or not path
        or not all(part.isidentifier() for part in (*module_name.split("."), *path.split(".")))
    ):
        raise InvalidInput(
            f"the agent {source!r} is not named as package.module:Class",
            code="MN-0109",
            hint="for example my_agents:Mine",
        )
    known = module_name in sys.modules
    importlib.invalidate_caches()  # the file may be newer than the last listing of its folder
    try:
        found: object = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
        return _checked(found, source)
    except AgentUnavailable:
        _forget(module_name, known)
        raise
    except Exception as error:
        _forget(module_name, known)
        raise _unavailable(source, f"{type(error).__name__}: {error}") from error


def _checked(found: object, name: str) -> type[AgentExecutionMixin]:
    if not inspect.isclass(found):
        raise _unavailable(name, "it is not a class")
    if not callable(getattr(found, "execute_work", None)):
        raise _unavailable(name, "it does not define execute_work")
    # Any class with execute_work may take a role's place; the mixin only adds what it would otherwise have to write.
    return cast(type[AgentExecutionMixin], found)


def _forget(module_name: str, known: bool) -> None:
    if not known:
        sys.modules.pop(module_name, None)


def _unavailable(name: str, reason: str) -> AgentUnavailable:
    return AgentUnavailable(
        f"the agent {name} cannot be loaded",
        code="MN-0309",
        reason=reason,
        hint="correct the module; it is tried again by itself",
    )
