"""The nouns of mnemosyne as Python sees them: validated at the edge, mirrored by ``rust/core``.

A test compares these with the Rust types field by field, so neither side can drift alone.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from mnemosyne.names import AgentRole, AgentState, Phase

__all__ = [
    "Acceptance",
    "AgentHealth",
    "AgentRole",
    "AgentState",
    "ArtifactRef",
    "Budget",
    "ChildSpec",
    "Event",
    "Evidence",
    "Limits",
    "Phase",
    "Plan",
    "PlanTask",
    "Reservation",
    "RoleHealth",
    "SupervisorView",
    "SystemHealth",
    "Usage",
    "WorkItem",
    "WorkResult",
]


class _Strict(BaseModel):
    """A model that refuses keys it does not know: a misspelt key must not be silently ignored."""

    # A schema is built when it is first used: a process that sends one item must not wait for thirty.
    model_config = ConfigDict(extra="forbid", defer_build=True)


class Usage(_Strict):
    """Tokens and money of one or more model turns."""

    turns: int = Field(default=0, ge=0, description="Model turns that completed.")
    input_tokens: int = Field(
        default=0, ge=0, description="Input tokens that were not read from or written to the cache."
    )
    output_tokens: int = Field(default=0, ge=0)
    cache_read_tokens: int = Field(default=0, ge=0)
    cache_write_tokens: int = Field(default=0, ge=0)
    cost_usd: float = Field(default=0.0, ge=0, description="List price in US dollars; 0 where no price is known.")

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            turns=self.turns + other.turns,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cache_read_tokens=self.cache_read_tokens + other.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            cost_usd=self.cost_usd + other.cost_usd,
        )


class ArtifactRef(_Strict):
    """A stored artifact."""

    name: str
    sha256: str
    size: int = Field(ge=0, description="Bytes.")


class Evidence(_Strict):
    """One observation that we made ourselves (TRUTH-1)."""

    kind: str = Field(
        description="What was looked at. Commands: setup, acceptance, old_tests (the commit with the tests that were "
        "there before), joined (with those of the tasks accepted before), base (before anything was made). Files: "
        "file, test (what the change did to it), accepted (as it was written into the workspace). Else: scope, change."
    )
    command: str | None = None
    exit_code: int | None = Field(
        default=None, description="On the commit under review; None where it was not run or did not end by itself."
    )
    before_exit_code: int | None = Field(
        default=None,
        description="On the base, with the tests of the change; None where it was not run or did not end by itself.",
    )
    seconds: float = 0.0
    output: str = Field(default="", description="The tail of what the command printed; for the others, what was seen.")
    path: str | None = Field(default=None, description="Of a file, relative to the workspace.")
    change: str | None = Field(
        default=None, description="Of a file: added, changed, deleted; of a test also extended, rewritten, skipped."
    )
    sha256: str | None = Field(default=None, description="Of the file's content after; None where there is none.")


class WorkItem(_Strict):
    """One thing for one agent to do."""

    id: str
    description: str
    phase: Phase
    role: AgentRole
    priority: Annotated[int, Field(ge=0, le=10)] = 5
    depends_on: list[str] = Field(default_factory=list)
    file_scope: list[str] = Field(default_factory=list, description="Path prefixes relative to the workspace.")
    context: dict[str, JsonValue] = Field(default_factory=dict)
    timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    attempt: Annotated[int, Field(ge=1)] = 1


class WorkResult(_Strict):
    """What an agent returned. A key it does not know is an error that names the key."""

    success: bool
    data: dict[str, JsonValue] = Field(default_factory=dict)
    artifacts: list[ArtifactRef] = Field(default_factory=list)
    evidence: list[Evidence] = Field(default_factory=list)
    error: str | None = None
    usage: Usage = Field(default_factory=lambda: Usage())


class Acceptance(_Strict):
    """A shell command that proves a task: red on the base, green on the commit."""

    command: str = Field(min_length=1)
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 120.0


class PlanTask(_Strict):
    """One task of a plan."""

    id: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    title: str = Field(min_length=1)
    description: str = ""
    depends_on: list[str] = Field(default_factory=list)
    file_scope: list[str] = Field(
        default_factory=list,
        description="Path prefixes the task may change; none: it may change everything, and so runs alone.",
    )
    acceptance: list[Acceptance] = Field(min_length=1)


class Plan(_Strict):
    """The tasks that turn a full specification into files."""

    setup: list[str] = Field(default_factory=list, description="Shell commands that prepare a fresh tree.")
    tasks: list[PlanTask] = Field(min_length=1)


class Limits(_Strict):
    """Five limits; None is no limit."""

    usd: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="US dollars, at list price."
    )
    tokens: Annotated[int, Field(gt=0)] | None = Field(default=None, description="Tokens of any kind.")
    calls: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="Requests to a model, whatever came of them."
    )
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Of a run: from its start to its end, without the time between a stop and its resume. Of a task or "
        "an agent: while it is worked on, or works.",
    )
    depth: Annotated[int, Field(gt=0)] | None = Field(
        default=None,
        description="How many agents deep an item may be handed on: the agent that was given the item is 1 deep, one "
        "that it calls is 2 deep, and so on.",
    )


class Budget(Limits):
    """What a run may spend: all of it together, and within it each task and each agent.

    Whatever limit is reached, the run stops before the spend (state ``budget``) and can be resumed with a larger one.
    """

    per_task: Limits = Field(default_factory=Limits, description="Each task of the plan, over all its attempts.")
    per_agent: Limits = Field(default_factory=Limits, description="Each agent, over all its generations.")


class Reservation(_Strict):
    """Money and tokens set aside before a spend (BUDGET-1)."""

    id: str
    tokens: int = Field(ge=0)
    usd: float | None = None


class Event(BaseModel):
    """One thing that happened, committed before anybody saw it (DUR-3)."""

    model_config = ConfigDict(extra="ignore")

    sequence: int
    at: str = Field(description="UTC, RFC 3339 with milliseconds.")
    run: str | None = None
    kind: str
    phase: Phase | None = None
    task: str | None = None
    item: str | None = None
    role: AgentRole | None = None
    agent: str | None = None
    generation: int | None = None
    epoch: int | None = None
    attempt: int | None = None
    data: dict[str, JsonValue] = Field(default_factory=dict)


class AgentHealth(BaseModel):
    """A snapshot of one agent; reading it never blocks."""

    model_config = ConfigDict(extra="ignore")

    agent_id: str
    role: AgentRole
    state: AgentState
    is_healthy: bool = Field(description="Fewer than 3 errors in the window, and running.")
    error_count: int = Field(ge=0, description="Errors in the last 60 s since the last success.")
    last_error: str | None = None
    last_error_at: str | None = None
    should_restart: bool
    generation: int = Field(ge=0, description="0 before its first start.")
    restarts: int = Field(ge=0)
    next_restart_at: str | None = None
    heartbeat_age_seconds: float | None = None
    progress_age_seconds: float | None = Field(
        default=None,
        description="Since its claimed work last said anything (a step, a tool, a piece of an answer), while it works.",
    )
    pid: int | None = Field(default=None, description="Of its process, where it has one of its own.")


class RoleHealth(BaseModel):
    """One role of the tree."""

    model_config = ConfigDict(extra="ignore")

    state: str
    reason: str | None = None
    agents: list[AgentHealth] = Field(default_factory=list)


class ChildSpec(BaseModel):
    """An agent as its supervisor keeps it, with every default; without its configuration, which may hold a secret."""

    model_config = ConfigDict(extra="ignore")

    id: str
    role: AgentRole
    source: dict[str, str] = Field(
        description="`import`: where the class is found; `registered`: a class of this process."
    )
    in_flight: int
    restart: str
    shutdown: float | str = Field(description='Seconds, "kill" or "infinity".')
    isolation: str
    limits: dict[str, int | None]


class SupervisorView(BaseModel):
    """A supervisor and its agents as data, in start order."""

    model_config = ConfigDict(extra="ignore")

    supervisor: dict[str, JsonValue] = Field(description="`strategy`, `intensity`, and `period` in seconds.")
    children: list[ChildSpec]


class SystemHealth(BaseModel):
    """The whole tree."""

    model_config = ConfigDict(extra="ignore")

    roles: dict[AgentRole, RoleHealth]
    queue: dict[str, int]
    store: dict[str, JsonValue]
    intake: dict[str, str | None] = Field(
        default_factory=dict,
        description="`state`: open, or stopped where no role has an agent that could work; then `reason`.",
    )
