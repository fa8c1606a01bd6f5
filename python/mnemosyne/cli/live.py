"""The live view of a run on a terminal: phases and tasks with their states, attempts, tokens, cost and time.

It stands below the lines of progress and is drawn anew a few times a second; at the end it is taken away, and the
summary takes its place. Only on a terminal: piped, with ``--json`` or ``--quiet`` there is none. The state is a fold of
the run's events, so a resumed run shows what is known of it from its first event on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from mnemosyne.cli.style import one_line, short_count

if TYPE_CHECKING:
    from mnemosyne.models import Event

__all__ = ["LiveView", "RunPicture"]

_FRAMES_PER_SECOND = 8
_ROOM = 8
"""Lines of the terminal that the view leaves to the lines of progress above it."""
_PHASES = ("prompt_to_spec", "spec_to_full_spec", "full_spec_to_plan", "plan_to_artifacts", "complete")
_STEPS = {"optimizer": "optimize", "executor": "execute", "reviewer": "review", "orchestrator": "accept"}
_TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
_COLOURS = {
    "done": "green",
    "accepted": "green",
    "pending": "dim",
    "blocked": "dim",
    "skipped": "dim",
    "failed": "red",
    "conflict": "red",
    "waiting": "yellow",
    "rework": "yellow",
}
_ENDED = ("done", "accepted", "failed", "conflict", "skipped")


@dataclass
class _Part:
    """A phase or a task."""

    name: str
    state: str
    title: str = ""
    attempt: int = 0
    tokens: int = 0
    began: datetime | None = None
    ended: datetime | None = None


@dataclass
class RunPicture:
    """What the events of a run add up to; ``add`` and ``lines`` may be called from different threads.

    Attributes:
        run: The run's id.
        priced: Whether its cost means anything.
    """

    run: str
    priced: bool = True
    _phases: dict[str, _Part] = field(default_factory=lambda: {name: _Part(name, "pending") for name in _PHASES})
    _tasks: dict[str, _Part] = field(default_factory=dict)
    _degraded: dict[str, str] = field(default_factory=dict)
    _tokens: int = 0
    _cost: float = 0.0
    _began: datetime | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, event: Event) -> None:
        """Take an event in."""
        with self._lock:
            at = datetime.fromisoformat(event.at)
            self._began = self._began or at
            self._add_usage(event)
            if event.kind == "role_degraded":
                self._degraded[str(event.role)] = one_line(event.data.get("reason") or "")
            elif event.kind == "role_recovered":
                self._degraded.pop(str(event.role), None)
            elif event.task is not None:
                self._add_task(event, at)
            elif event.phase is not None:
                self._add_phase(event, at)

    def lines(self, now: datetime, height: int) -> list[Text]:
        """Return the view as it is at ``now``, of at most ``height`` lines."""
        with self._lock:
            seconds = (now - self._began).total_seconds() if self._began else 0.0
            cost = f"{self._cost:.2f} USD" if self.priced else "no cost"
            head = Text.assemble((self.run, "bold"), f"  {seconds:.1f} s  {short_count(self._tokens)} tokens  {cost}")
            tasks = list(self._tasks.values())
            fixed = [self._row("├─ ", self._phases[name], now) for name in _PHASES[:-2]]
            work = self._row("├─ " if not tasks else "├┬ ", self._phases["plan_to_artifacts"], now)
            last = self._row("└─ ", self._phases["complete"], now)
            roles = [
                Text(f"{role} is degraded: {reason}", style="bold red")
                for role, reason in sorted(self._degraded.items())
            ]
            shown = self._shown(tasks, now, max(1, height - len(fixed) - len(roles) - 3))
            return [head, *fixed, work, *shown, last, *roles]

    def _shown(self, tasks: list[_Part], now: datetime, room: int) -> list[Text]:
        """As many tasks as there is room for, those that are worked on first."""
        if len(tasks) <= room:
            kept, left = tasks, 0
        else:
            live = sorted(tasks, key=lambda task: (task.state in _ENDED, task.state == "blocked"))[: room - 1]
            kept, left = [task for task in tasks if task in live], len(tasks) - room + 1
        rows = [self._row("│├─ ", task, now) for task in kept[:-1]]
        rows += [self._row("│├─ " if left else "│└─ ", task, now) for task in kept[-1:]]
        return [*rows, Text(f"│└─ and {left} more", style="dim")] if left else rows

    def _row(self, branch: str, part: _Part, now: datetime) -> Text:
        took = f"{((part.ended or now) - part.began).total_seconds():.1f} s" if part.began else ""
        attempt = f"attempt {part.attempt}" if part.attempt else ""
        tokens = short_count(part.tokens) if part.tokens else ""
        colour = _COLOURS.get(part.state, "cyan")
        name = part.name if len(branch) < 4 else part.name[:14]
        return Text.assemble(
            (branch, "dim"),
            name.ljust(22 - len(branch)),
            (part.state.ljust(11), colour),
            attempt.ljust(11),
            (took.rjust(8), "dim"),
            (tokens.rjust(8), "dim"),
            f"  {part.title}",
        )

    def _add_usage(self, event: Event) -> None:
        usage = event.data.get("usage")
        if not isinstance(usage, dict):
            return
        used = sum(int(value) for key in _TOKENS if isinstance(value := usage.get(key), int | float))
        cost = usage.get("cost_usd")
        self._tokens += used
        self._cost += float(cost) if isinstance(cost, int | float) else 0.0
        part = self._tasks.get(event.task or "") or self._phases.get(event.phase or "")
        if part is not None:
            part.tokens += used

    def _add_phase(self, event: Event, at: datetime) -> None:
        part = self._phases[str(event.phase)]
        match event.kind:
            case "phase_started":
                part.state, part.began = "running", at
            case "phase_completed":
                part.state, part.ended = "done", at
                part.title = str(event.data.get("artifact") or "")
            case "run_completed":
                part.state, part.began, part.ended = "done", at, at
            case "work_parked":
                part.state = "waiting"
            case "work_started":
                part.state = "running"

    def _add_task(self, event: Event, at: datetime) -> None:
        name = str(event.task)
        part = self._tasks.setdefault(name, _Part(name, "ready"))
        part.attempt = max(part.attempt, event.attempt or 0)
        match event.kind:
            case "task_ready" | "task_retried":
                part.state, part.title = "ready", one_line(event.data.get("title") or "")
            case "work_started":
                part.state = str(event.data.get("kind") or _STEPS.get(event.role or "", "running"))
                part.began, part.ended = part.began or at, None
            case "work_parked":
                part.state = "waiting"
            case "review_rejected":
                part.state = "rework"
            case "task_accepted":
                part.state, part.ended = "accepted", at
            case "task_failed":
                part.state, part.ended = str(event.data.get("state") or "failed"), at
            case "task_skipped":
                part.state, part.ended = "skipped", at


class LiveView:
    """Draws a picture on the terminal until it is closed; what is printed meanwhile appears above it."""

    def __init__(self, picture: RunPicture) -> None:
        self._picture = picture
        self._console = Console(highlight=False, soft_wrap=False)
        self._live = Live(
            self, console=self._console, refresh_per_second=_FRAMES_PER_SECOND, transient=True, vertical_overflow="crop"
        )
        self._live.start()
        # A run that is killed could not bring it back.
        self._console.show_cursor(True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _cut(self._picture.lines(datetime.now(UTC), max(8, console.height - _ROOM)), options.max_width)

    def add(self, event: Event) -> None:
        """Take an event in; it is seen in the next frame."""
        self._picture.add(event)

    def close(self) -> None:
        """Take the view away, and give the terminal back."""
        self._live.stop()


def _cut(lines: Iterable[Text], width: int) -> Iterable[Text]:
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
        yield line
