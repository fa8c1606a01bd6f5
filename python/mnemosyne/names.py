"""The names that are a choice among a few: roles, phases, states.

Without pydantic: whoever only makes agents, as a Rust program that embeds Python does, need not wait for its import.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["AgentRole", "AgentState", "Phase"]


class AgentRole(StrEnum):
    """The four roles."""

    ORCHESTRATOR = "orchestrator"
    OPTIMIZER = "optimizer"
    REVIEWER = "reviewer"
    EXECUTOR = "executor"


class Phase(StrEnum):
    """The Work Plan Protocol, in order."""

    PROMPT_TO_SPEC = "prompt_to_spec"
    SPEC_TO_FULL_SPEC = "spec_to_full_spec"
    FULL_SPEC_TO_PLAN = "full_spec_to_plan"
    PLAN_TO_ARTIFACTS = "plan_to_artifacts"
    COMPLETE = "complete"


class AgentState(StrEnum):
    """What an agent is doing, as its supervisor sees it."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    SLOW = "slow"
    SUSPECT = "suspect"
    RESTARTING = "restarting"
    QUARANTINED = "quarantined"
    DEGRADED = "degraded"
    STOPPED = "stopped"
