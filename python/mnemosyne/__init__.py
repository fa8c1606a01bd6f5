"""An orchestrator for Claude agents: Rust keeps agents alive and work durable, Python thinks with Claude.

Importing this package costs nothing: names are loaded when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnemosyne.agents.agent_factory import create_agent
    from mnemosyne.agents.base_agent import AgentExecutionMixin
    from mnemosyne.agents.context import AgentContext
    from mnemosyne.bridge import AgentSpec, ClaudeAgentBridge
    from mnemosyne.errors import (
        AgentError,
        AgentUnavailable,
        BridgeClosed,
        BridgeFull,
        BudgetExceeded,
        EnvironmentProblem,
        Fenced,
        InvalidInput,
        MissingCredential,
        MnemosyneError,
        RunFailed,
        StoreUnavailable,
        WorkTimeout,
    )
    from mnemosyne.models import (
        AgentHealth,
        AgentRole,
        ArtifactRef,
        Budget,
        Event,
        Phase,
        Plan,
        Reservation,
        SystemHealth,
        Usage,
        WorkItem,
        WorkResult,
    )
    from mnemosyne.orchestra import Orchestra, Run, RunResult, Work

__version__ = "0.1.0"

_MODULES = {
    "mnemosyne.agents.agent_factory": ["create_agent"],
    "mnemosyne.agents.base_agent": ["AgentExecutionMixin"],
    "mnemosyne.agents.context": ["AgentContext"],
    "mnemosyne.bridge": ["AgentSpec", "ClaudeAgentBridge"],
    "mnemosyne.errors": [
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
        "RunFailed",
        "StoreUnavailable",
        "WorkTimeout",
    ],
    "mnemosyne.models": [
        "AgentHealth",
        "AgentRole",
        "ArtifactRef",
        "Budget",
        "Event",
        "Phase",
        "Plan",
        "Reservation",
        "SystemHealth",
        "Usage",
        "WorkItem",
        "WorkResult",
    ],
    "mnemosyne.orchestra": ["Orchestra", "Run", "RunResult", "Work"],
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AgentContext",
    "AgentError",
    "AgentExecutionMixin",
    "AgentHealth",
    "AgentRole",
    "AgentSpec",
    "AgentUnavailable",
    "ArtifactRef",
    "BridgeClosed",
    "BridgeFull",
    "Budget",
    "BudgetExceeded",
    "ClaudeAgentBridge",
    "EnvironmentProblem",
    "Event",
    "Fenced",
    "InvalidInput",
    "MissingCredential",
    "MnemosyneError",
    "Orchestra",
    "Phase",
    "Plan",
    "Reservation",
    "Run",
    "RunFailed",
    "RunResult",
    "StoreUnavailable",
    "SystemHealth",
    "Usage",
    "Work",
    "WorkItem",
    "WorkResult",
    "WorkTimeout",
    "__version__",
    "create_agent",
]


def __getattr__(name: str) -> object:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module 'mnemosyne' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return __all__
