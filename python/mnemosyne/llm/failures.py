"""The ways in which a turn can fail, as one table: how often it is sent, what is waited for, what happens then.

Each class has a budget of its own and a name that its events (``class`` in ``step_finished``, ``work_parked``,
``work_failed``) and its metrics carry. None is ever charged to the agent's error window: a model that fails says
nothing about the agent.

| class | sent | waits | used up |
|---|---|---|---|
| fatal: 400, 404, 413, 422, an ``invalid_request_error`` | once | | the attempt fails |
| wait_until: 429 with a time | | what the server says | parked until then |
| overloaded: 5xx, 529, 429 without a time, ``overloaded_error`` in the stream | for 15 min | backoff | parked |
| unreachable: no connection to a server that has answered before | for 15 min | backoff | parked |
| stalled: no byte for too long, see ``mnemosyne.llm.client`` | 3 times | backoff | the attempt fails |
| cut: the answer ended before its end; 408, 409 | 3 times | backoff | goes back; five in a row fail the attempt |
| malformed: the answer cannot be understood | 3 times | backoff | goes back; five in a row fail the attempt |
| refusal | once | | the item ends with the model's words |
| max_tokens | once | | the attempt fails |
| context_overflow | once | | the session compacts, or the attempt fails |
| tool_error | | | the model is told and goes on |
| quality: a gate or the reviewer rejects | | | rework, at most three attempts |

A wait of more than 30 seconds is never waited in a task: the work is *parked*, its claim released and nobody charged.
401 and 403 are not here: they are the environment's (MN-0202), and the run stops until somebody corrects them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

__all__ = ["LONGEST_RETRY_AFTER", "LONGEST_WAIT_IN_TASK", "PARK_SECONDS", "RULES", "Failure", "Rule", "UsedUp"]

LONGEST_WAIT_IN_TASK = 30.0
"""Seconds. An agent that waits does no other work, so what takes longer is parked."""
LONGEST_RETRY_AFTER = 3600.0
"""Seconds. A server that names a later time is asked again then: that costs one request, a wrong header a whole day."""
OVERLOADED_SECONDS = 900.0
"""In all. People report walls of 529 that last 14 minutes; what lasts longer is parked."""
PARK_SECONDS = 300.0
"""For work that used its 15 minutes up; up to a fifth is added, so that what was parked together comes back apart."""


class Failure(StrEnum):
    """How a turn, or what came of it, failed."""

    FATAL = "fatal"
    WAIT_UNTIL = "wait_until"
    OVERLOADED = "overloaded"
    UNREACHABLE = "unreachable"
    STALLED = "stalled"
    CUT = "cut"
    MALFORMED = "malformed"
    REFUSAL = "refusal"
    MAX_TOKENS = "max_tokens"
    CONTEXT_OVERFLOW = "context_overflow"
    TOOL_ERROR = "tool_error"
    QUALITY = "quality"


class UsedUp(StrEnum):
    """What happens when a class's budget is used up."""

    PARKS = "parks"
    """The item waits and is claimed again; nothing is counted."""
    GOES_BACK = "goes_back"
    """The item is claimed again soon; the fifth time in a row fails the attempt."""
    FAILS = "fails"
    """The attempt has failed, with the reason in the next one's prompt."""
    ENDS = "ends"
    """The item ends: to ask the same again would only be paid for again."""
    ELSEWHERE = "elsewhere"
    """Not this room's: the session tells the model, the harness asks for rework."""


@dataclass(frozen=True)
class Rule:
    """The budget of one class.

    Attributes:
        used_up: What happens then.
        tries: How often one turn is sent, the first time included; None: as often as ``seconds`` allow.
        seconds: For how long one turn is tried in all, from its first failure.
        first: Seconds to which the first wait is bounded; the bound doubles with each failure. The wait is drawn evenly
            from zero to the bound (full jitter), so that agents that failed together do not come back together.
        longest: Seconds that the bound does not exceed.
    """

    used_up: UsedUp
    tries: int | None = 1
    seconds: float | None = None
    first: float = 0.5
    longest: float = 8.0


_FOR_15_MINUTES = Rule(UsedUp.PARKS, tries=None, seconds=OVERLOADED_SECONDS, first=1.0, longest=LONGEST_WAIT_IN_TASK)

RULES: Mapping[Failure, Rule] = MappingProxyType(
    {
        Failure.FATAL: Rule(UsedUp.FAILS),
        Failure.WAIT_UNTIL: _FOR_15_MINUTES,
        Failure.OVERLOADED: _FOR_15_MINUTES,
        Failure.UNREACHABLE: _FOR_15_MINUTES,
        # Sent once more and once again, and no more: each stall may have been paid for.
        Failure.STALLED: Rule(UsedUp.FAILS, tries=3),
        Failure.CUT: Rule(UsedUp.GOES_BACK, tries=3),
        Failure.MALFORMED: Rule(UsedUp.GOES_BACK, tries=3),
        Failure.REFUSAL: Rule(UsedUp.ENDS),
        Failure.MAX_TOKENS: Rule(UsedUp.FAILS),
        Failure.CONTEXT_OVERFLOW: Rule(UsedUp.FAILS),
        Failure.TOOL_ERROR: Rule(UsedUp.ELSEWHERE),
        Failure.QUALITY: Rule(UsedUp.ELSEWHERE),
    }
)
