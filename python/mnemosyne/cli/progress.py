"""Events as lines for people: elapsed, phase, task, step, what happened. Most events say nothing new and get no line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from mnemosyne.cli.style import Style, one_line, tokens_text

if TYPE_CHECKING:
    from pydantic import JsonValue

    from mnemosyne.models import Event

__all__ = ["Progress", "event_line"]

_STEPS = {"optimizer": "optimize", "executor": "execute", "reviewer": "review", "orchestrator": "accept"}
_TELLING = re.compile(r"^\s*(\w*(Error|Exception|Failure)\b.*|error\b.*)$", re.MULTILINE)
_TOKEN_KEYS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


class Progress:
    """Turns the events of one run into lines; remembers when it began and how many tokens were used."""

    def __init__(self, style: Style) -> None:
        self._style = style
        self._began: datetime | None = None
        self._tokens = 0

    def line(self, event: Event) -> str | None:
        """Return the line of an event, or None if it gets none."""
        at = datetime.fromisoformat(event.at)
        self._began = self._began or at
        self._count(event.data)
        said = _of_run(event) or _of_task(event) or _of_agent(event)
        if said is None:
            return None
        step, text, colour = said
        if colour == "good" and self._tokens:
            text += f"  [{tokens_text(self._tokens)}]"
        where = str(event.phase or event.agent or event.role or "")
        elapsed = f"{(at - self._began).total_seconds():.1f}s"
        return self._style.row(
            [
                (elapsed, -8, "dim"),
                ("  ", 2, ""),
                (where, 19, "dim"),
                (one_line(event.task or ""), 6, ""),
                (step, 10, ""),
                (one_line(text), 0, colour),
            ]
        )

    def _count(self, data: Mapping[str, JsonValue]) -> None:
        usage = data.get("usage")
        if isinstance(usage, dict):
            self._tokens += sum(int(value) for key in _TOKEN_KEYS if isinstance(value := usage.get(key), int | float))


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


def _of_run(event: Event) -> tuple[str, str, str] | None:
    data = event.data
    match event.kind:
        case "phase_started":
            return "", "started", ""
        case "phase_completed":
            return "", f"done: {data.get('artifact')}", "good"
        case "run_resumed":
            return "", "resumed", ""
        case "run_completed":
            return "", "complete", "good"
        case "run_failed":
            return "", f"run failed: {data.get('message')}", "bad"
        case "run_cancelled":
            return "", f"cancelled: {data.get('reason')}", "bad"
        case "run_interrupted":
            return "", _with("interrupted", data.get("message") or data.get("reason")), "warn"
        case "run_paused":
            return "", _with("paused", data.get("reason")), "warn"
        case "budget_warning" | "budget_exceeded" | "breaker_opened" | "breaker_closed":
            return "", _with(event.kind.replace("_", " "), data.get("message") or data.get("reason")), "warn"
    return None


def _of_task(event: Event) -> tuple[str, str, str] | None:
    data, attempt = event.data, event.attempt or 1
    step = _STEPS.get(event.role or "", "") if event.task else ""
    match event.kind:
        case "task_ready":
            return "ready", str(data.get("title", "")), ""
        case "work_started" if event.task or attempt > 1:
            return step, f"attempt {attempt}", ""
        case "work_failed":
            return step, f"attempt {attempt} failed: {_telling(data.get('error'))}", "bad"
        case "work_dead":
            return step, f"given up: {_telling(data.get('error'))}", "bad"
        case "work_parked":
            return step, f"waits until {data.get('until')}", "warn"
        case "review_passed":
            return "review", f"attempt {attempt} passed", "good"
        case "review_rejected":
            return "review", f"attempt {attempt} rejected: {_telling(data.get('feedback'))}", "warn"
        case "task_accepted":
            files = data.get("files")
            return "accept", f"accepted: {', '.join(map(str, files)) if isinstance(files, list) else ''}", "good"
        case "task_failed":
            return "", f"{data.get('state', 'failed')}: {_telling(data.get('reason'))}", "bad"
        case "task_skipped":
            return "", f"skipped: {_listed(data.get('because_of'))} was not accepted", "warn"
    return None


def _of_agent(event: Event) -> tuple[str, str, str] | None:
    data = event.data
    match event.kind:
        case "agent_failed":
            return "", f"failed: {_telling(data.get('error'))}", "warn"
        case "agent_health_degraded":
            return "", f"unhealthy after {data.get('count')} errors", "warn"
        case "agent_restarted":
            return "", f"restarted as generation {data.get('generation', event.generation)}", "warn"
        case "agent_quarantined":
            return "", _with("quarantined", data.get("reason")), "bad"
        case "role_degraded":
            return "", _with("degraded", data.get("reason")), "bad"
        case "agent_recovered" | "role_recovered":
            return "", "recovered", ""
    return None


def _with(text: str, reason: object) -> str:
    return f"{text}: {reason}" if reason else text


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _telling(text: object) -> str:
    """The one line of an output that says most: the last error in it, else its first line."""
    lines = [line for line in str(text or "").splitlines() if line.strip()]
    errors = [match.group(1) for match in _TELLING.finditer(str(text or ""))]
    return one_line(errors[-1] if errors else lines[0] if lines else "no reason was given")
