"""Events as lines for people: elapsed, phase, task, step, what happened. Events that say nothing new get no line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from mnemosyne.cli.style import Style, one_line, short_count
from mnemosyne.cli.summary import add_usage, empty_usage, waits_until

if TYPE_CHECKING:
    from pydantic import JsonValue

    from mnemosyne.models import Event

__all__ = ["Progress", "event_line"]

_STEPS = {"optimizer": "optimize", "executor": "execute", "reviewer": "review", "orchestrator": "accept"}
_TELLING = re.compile(r"^\s*(\w*(Error|Exception|Failure)\b.*|error\b.*)$", re.MULTILINE)
_TROUBLE = {
    "review_rejected": ("rejected", "feedback"),
    "work_failed": ("failed", "error"),
    "work_dead": ("given up", "error"),
    "task_failed": ("failed", "reason"),
}
"""Kind -> what the summary says of it, and the key of its data that says why."""
_TOKEN_KEYS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


_ELAPSED, _TOKENS, _WHERE, _TASK, _STEP = -8, -8, 18, 6, 10
_DETAIL = " " * 20
"""Under the column of the phase."""


@dataclass(frozen=True)
class _Said:
    """What a line says of an event."""

    text: str
    step: str = ""
    colour: str = ""
    detail: str = ""
    """Why, on a line of its own: it is the longest part, and the one that must not be cut first."""


class Progress:
    """Turns the events of one run into lines; remembers when it began and how many tokens were used.

    Attributes:
        rejections: Task -> why each of its attempts so far came to nothing, for the summary.
        usage: What the turns of these events used.
    """

    def __init__(self, style: Style) -> None:
        self.rejections: dict[str, list[str]] = {}
        self.usage = empty_usage()
        self._style = style
        self._began: datetime | None = None
        self._tokens = 0

    def head(self) -> str:
        """Return the head of the columns."""
        return self._row("time", "tokens", "phase", "task", "step", _Said("", colour="dim"))

    def lines(self, event: Event) -> list[str]:
        """Return the lines of an event; none if it says nothing new."""
        at = datetime.fromisoformat(event.at)
        self._began = self._began or at
        self._count(event.data)
        self._note_trouble(event)
        said = _of_run(event) or _of_task(event) or _of_agent(event)
        if said is None:
            return []
        elapsed = f"{(at - self._began).total_seconds():.1f}s"
        where = str(event.phase or event.agent or event.role or "")
        lines = [self._row(elapsed, short_count(self._tokens), where, one_line(event.task or ""), said.step, said)]
        if said.detail:
            lines.append(self._style.row([(f"{_DETAIL}{one_line(said.detail)}", 0, "dim")]))
        return lines

    def _note_trouble(self, event: Event) -> None:
        if not event.task or event.kind not in _TROUBLE:
            return
        how, key = _TROUBLE[event.kind]
        attempt = f"attempt {event.attempt} " if event.kind != "task_failed" else ""
        why = f"{attempt}{how}: {_telling(event.data.get(key))}"
        said = self.rejections.setdefault(event.task, [])
        # The end of a task repeats what its last attempt came to.
        if why not in said and not (said and event.kind == "task_failed" and said[-1].endswith(why.split(": ", 1)[1])):
            said.append(why)

    def _row(self, elapsed: str, tokens: str, where: str, task: str, step: str, said: _Said) -> str:
        cells = [(elapsed, _ELAPSED, "dim"), (tokens, _TOKENS, "dim"), ("  ", 2, ""), (where, _WHERE, "dim")]
        cells += [("  ", 2, ""), (task, _TASK, ""), (step, _STEP, ""), (one_line(said.text), 0, said.colour)]
        return self._style.row(cells)

    def _count(self, data: Mapping[str, JsonValue]) -> None:
        usage = data.get("usage")
        if isinstance(usage, dict):
            self._tokens += sum(int(value) for key in _TOKEN_KEYS if isinstance(value := usage.get(key), int | float))
            add_usage(self.usage, usage)


def event_line(event: Event, style: Style) -> str:
    """Return the line of an event in ``mnemosyne events``: every event, with all its data."""
    place = [str(part) for part in (event.phase, event.task, event.agent or event.role) if part]
    numbers = {"attempt": event.attempt, "generation": event.generation, "epoch": event.epoch, **event.data}
    data = " ".join(f"{key}={one_line(value)}" for key, value in numbers.items() if value is not None)
    return style.row(
        [
            (str(event.sequence), -6, "dim"),
            ("  ", 2, ""),
            (event.at[11:23], 14, "dim"),
            (event.kind, 24, ""),
            (f"{' '.join(place)}  ", 0, ""),
            (data, 0, "dim"),
        ]
    )


def _of_run(event: Event) -> _Said | None:
    data = event.data
    why = str(data.get("message") or data.get("reason") or "")
    match event.kind:
        case "phase_started":
            return _Said("started")
        case "phase_completed":
            return _Said(f"done: {data.get('artifact')}", colour="good")
        case "run_resumed":
            return _Said("resumed")
        case "run_completed":
            return _Said("complete", colour="good")
        case "run_failed":
            return _Said("run failed", colour="bad", detail=why)
        case "run_cancelled":
            return _Said("cancelled", colour="bad", detail=why)
        case "run_interrupted" | "run_paused":
            return _Said(event.kind.removeprefix("run_"), colour="warn", detail=why)
        case "breaker_opened":
            return _Said("overloaded: one request at a time is tried", colour="warn", detail=str(data.get("endpoint")))
        case "breaker_closed":
            return _Said(f"the model answers again, after {data.get('seconds')} s", colour="good")
        case "budget_warning":
            return _Said(_warning(data), colour="warn")
        case "budget_exceeded":
            return _Said(event.kind.replace("_", " "), colour="warn", detail=why)
    return None


def _warning(data: Mapping[str, JsonValue]) -> str:
    kind, fraction, name = data.get("kind"), data.get("fraction"), data.get("name")
    percent = f"{fraction:.0%}" if isinstance(fraction, float) else "most"
    return f"{percent} of the {kind} of {name or 'the run'} are spent"


def _of_task(event: Event) -> _Said | None:
    data, attempt = event.data, event.attempt or 1
    step = str(data.get("kind") or _STEPS.get(event.role or "", "")) if event.task else ""
    match event.kind:
        case "task_ready":
            return _Said(str(data.get("title", "")), "ready")
        case "task_retried":
            return _Said(str(data.get("title", "")), "retry", detail=str(data.get("note") or ""))
        case "work_started" if event.task or attempt > 1:
            return _Said(f"attempt {attempt}", step)
        case "work_failed":
            return _Said(f"attempt {attempt} failed", step, "bad", _telling(data.get("error")))
        case "work_dead":
            return _Said("given up", step, "bad", _telling(data.get("error")))
        case "work_parked":
            whole = "the run waits" if data.get("run_waits") else "waits"
            return _Said(f"{whole} until {waits_until(data.get('until'))}", step, "warn", _telling(data.get("reason")))
        case "review_passed":
            return _Said(f"attempt {attempt} passed", "review", "good")
        case "review_rejected":
            return _Said(f"attempt {attempt} rejected", "review", "warn", _telling(data.get("feedback")))
        case "task_accepted":
            return _Said(f"accepted: {_listed(data.get('files'))}", "accept", "good")
        case "task_failed":
            return _Said(str(data.get("state", "failed")), "", "bad", _telling(data.get("reason")))
        case "task_skipped":
            return _Said(f"skipped: {_listed(data.get('because_of'))} not accepted", "", "warn")
    return None


def _of_agent(event: Event) -> _Said | None:
    data = event.data
    match event.kind:
        case "agent_failed" if not event.item:  # of an item, its work_failed says the same
            return _Said("failed", colour="warn", detail=_telling(data.get("error")))
        case "agent_health_degraded":
            return _Said(f"unhealthy after {data.get('count')} errors", colour="warn")
        case "agent_restarted":
            return _Said(f"restarted as generation {data.get('generation', event.generation)}", colour="warn")
        case "agent_quarantined":
            return _Said("quarantined", colour="bad", detail=str(data.get("reason") or ""))
        case "role_degraded":
            return _Said("degraded", colour="bad", detail=str(data.get("reason") or ""))
        case "agent_recovered" | "role_recovered":
            return _Said("recovered")
    return None


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _telling(text: object) -> str:
    """The one line of an output that says most: the last error in it, else its first line."""
    lines = [line for line in str(text or "").splitlines() if line.strip()]
    errors = [match.group(1) for match in _TELLING.finditer(str(text or ""))]
    return one_line(errors[-1] if errors else lines[0] if lines else "no reason was given")
