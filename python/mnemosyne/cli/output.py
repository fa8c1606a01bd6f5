"""The two streams. For people: progress and summary on stdout, errors on stderr. With ``--json``: stdout holds nothing
but NDJSON, its last line is a summary whatever happened, and errors still have their lines on stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from mnemosyne.cli.hints import with_store
from mnemosyne.cli.progress import Progress, event_line
from mnemosyne.cli.style import Style, one_line
from mnemosyne.cli.summary import ErrorForm, Summary, budget_form, error_lines, stopped_lines, summary_lines, tokens_of
from mnemosyne.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

    from mnemosyne.cli.live import LiveView
    from mnemosyne.errors import MnemosyneError
    from mnemosyne.models import Budget, Event
    from mnemosyne.validation import Finding

__all__ = ["SCHEMA", "About", "Output"]

SCHEMA = 1
"""Of the lines of ``--json``; rises when a key changes its meaning or goes away."""


@dataclass
class About:
    """What is known of the run so far, for the summary of a command that ends before the run could give its own."""

    run: str | None = None
    model: str | None = None
    demo: bool = False
    workspace: str | None = None
    budget: Budget | None = None
    resume: str | None = None


class Output:
    """Everything a command prints.

    Attributes:
        quiet: Only the final summary, and errors.
        store: The store that a flag named, for hints.
        about: Filled by the verbs as they learn it.
        deaf: Nobody reads stdout any more; work goes on, since a closed viewer is no reason to lose paid work.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.quiet = False
        self.store: Path | None = None
        self.about = About()
        self.deaf = False
        self._style = Style(sys.stdout)
        self._progress = Progress(self._style)
        self._began = time.monotonic()
        self._summarised = False
        self._live: LiveView | None = None
        self._answer: int | None = None
        """What the command has already said that it exits with."""
        for stream in (sys.stdout, sys.stderr):
            _never_fail_on(stream)

    @property
    def width(self) -> int:
        """Characters per line."""
        return self._style.width

    def began(self) -> None:
        """Say which run is worked on, as the head of the progress lines."""
        if not self.as_json and not self.quiet:
            model = "the demo model" if self.about.demo else self.about.model or "the default models"
            self._print(self._style.paint(f"{self.about.run} with {one_line(model)}", "strong"))
            self._print(self._style.paint(f"in {one_line(self.about.workspace)}", "dim"))
            self._print("")
            self._print(self._progress.head())
            if self._style.draws:
                from mnemosyne.cli.live import LiveView, RunPicture

                self._live = LiveView(RunPicture(self.about.run or "", priced=not self.about.demo))

    def rest(self) -> None:
        """Take the live view away: what comes now is the end, or an error."""
        if self._live is not None:
            self._live.close()
            self._live = None

    def event(self, event: Event) -> None:
        """Show an event as it comes: its line of progress, or its JSON."""
        lines = self._progress.lines(event)
        if self._live is not None:
            self._live.add(event)
        if self.as_json:
            self._json("event", _event_form(event))
            return
        for line in lines:
            if not self.quiet:
                self._print(line)

    def full_event(self, event: Event) -> None:
        """Show an event for ``mnemosyne events``: each one, with its data."""
        if self.as_json:
            self.event(event)
        else:
            self._print(event_line(event, self._style))

    def row(self, kind: str, form: Mapping[str, object], cells: Sequence[tuple[str, int, str]]) -> None:
        """Show one thing of a list: its JSON, or its cells (text, width, colour) on a line."""
        if self.as_json:
            self._json(kind, form)
        else:
            self._print(self._style.row(cells))

    def block(self, kind: str, form: Mapping[str, object], lines: Iterable[str]) -> None:
        """Show one thing that takes more than a line: its JSON, or its lines."""
        if self.as_json:
            self._json(kind, form)
        else:
            self.text(lines)

    def text(self, lines: Iterable[str]) -> None:
        """Show text to people; nothing with ``--json``."""
        if not self.as_json:
            for line in lines:
                self._print(line)

    def remember(self, event: Event) -> None:
        """Take note of an event that is not shown now, for the summary: why attempts were rejected."""
        self._progress.lines(event)

    def summary(self, summary: Summary, *, with_error: bool = False) -> None:
        """Show the summary of a run; ``with_error`` where the error is the answer and not what went wrong."""
        self.rest()
        self._summarised = True
        self._answer = None if with_error else summary["exit_code"]
        if self.as_json:
            return self._json("summary", summary)
        if not self.quiet and not with_error:
            self._print("")
        rejections = self._progress.rejections
        priced = _is_priced(summary)
        for line in summary_lines(summary, self._style, priced=priced, rejections=rejections, asked=with_error):
            self._print(line)
        if with_error and summary["error"]:
            self.text(["", *error_lines(summary["error"])])
        return None

    def note(self, text: str) -> None:
        """Say something on stderr that is no error."""
        # A terminal has just shown ^C on the line where we are.
        self._complain(f"\n{text}" if sys.stderr.isatty() else text)

    def warn(self, warnings: Iterable[Finding]) -> None:
        """Say what about a plan is better asked again; it is worked on all the same."""
        self._complain("\n".join(f"warning: {one_line(warning)}" for warning in warnings))

    def error(self, error: ErrorForm | MnemosyneError) -> None:
        """Show why a run, or a command, is not done."""
        form = error if isinstance(error, dict) else self._error_form(error)
        self._complain("\n".join(error_lines(form)))

    def fail(self, problem: MnemosyneError, exit_code: int, *, trace: str = "") -> int:
        """Show an error that ended the command, with the summary that ``--json`` owes; returns the exit code."""
        self.rest()
        self._complain(trace.rstrip())
        error = self._error_form(problem)
        self.error(error)
        if self.as_json and not self._summarised:
            resumable = self.about.run is not None and exit_code != 1
            self.summary(self._own_summary("interrupted" if resumable else "failed", exit_code, error))
        return exit_code

    def interrupted(self, exit_code: int) -> int:
        """Say that a signal ended the command; returns the exit code: that of the summary, once it was given."""
        self.rest()
        if self._answer is not None:
            return self._answer
        if not self._summarised:
            if self.as_json:
                self.summary(self._own_summary("interrupted", exit_code, None))
            elif self.about.run:
                # What it used and how far it came is in the store, not here: nothing is said rather than zeros.
                self._summarised = True
                self.text(stopped_lines(self.about.run, self.about.resume, self._style))
            else:
                self._complain("interrupted")
        return exit_code

    def flush(self) -> None:
        """Hand everything to the operating system, before a way out that does not."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                continue

    def _own_summary(self, state: str, exit_code: int, error: ErrorForm | None) -> Summary:
        about, usage = self.about, self._progress.usage
        seconds = round(time.monotonic() - self._began, 3)
        return {
            "run": about.run,
            "state": state,
            "exit_code": exit_code,
            "model": about.model,
            "demo": about.demo,
            "workspace": about.workspace,
            "phases": [],
            "tasks": [],
            "usage": usage,
            "parked": [],
            "budget": budget_form(about.budget),
            "spent": {
                "usd": usage["cost_usd"],
                "tokens": tokens_of(usage),
                "calls": usage["turns"],
                "seconds": seconds,
            },
            "restarts": 0,
            "resumes": 0,
            "seconds": seconds,
            "error": error,
            "resume": about.resume if about.run and state == "interrupted" else None,
        }

    def _error_form(self, problem: MnemosyneError) -> ErrorForm:
        from mnemosyne.redaction import redact

        hint = with_store(problem.hint, self.store)
        form: ErrorForm = {
            "code": problem.code,
            "message": redact(problem.message),
            "reason": redact(problem.reason),
            "hint": redact(hint),
        }
        if isinstance(problem, InvalidInput) and problem.problems:
            form["problems"] = [{key: redact(text) for key, text in one.items()} for one in problem.problems]
        return form

    def _json(self, kind: str, form: Mapping[str, object]) -> None:
        # Escaped to ASCII: it reads back the same everywhere, whatever the locale and whatever bytes a path is made of.
        self._print(json.dumps({"type": kind, "schema": SCHEMA, **form}, separators=(",", ":")))

    def _print(self, line: str) -> None:
        if self.deaf:
            return
        try:
            print(line, flush=True)
        except BrokenPipeError:
            self.deaf = True
            # Python flushes stdout once more when it ends, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _complain(self, text: str) -> None:
        if text:
            try:
                print(text, file=sys.stderr, flush=True)
            except OSError:  # there is nowhere left to say it
                return


def _event_form(event: Event) -> dict[str, object]:
    form = event.model_dump(mode="json")
    return {key: value for key, value in form.items() if value is not None or key == "run"}


def _is_priced(summary: Summary) -> bool:
    if summary["usage"]["cost_usd"] or not summary["usage"]["turns"]:
        return True
    from mnemosyne.llm.prices import has_price

    return summary["model"] is None or has_price(summary["model"])


def _never_fail_on(stream: TextIO) -> None:
    """A character that the terminal's encoding lacks becomes a question mark, not the end of the command."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
