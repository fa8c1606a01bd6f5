"""The two streams. For people: progress and summary on stdout, errors on stderr. With ``--json``: stdout holds nothing
but NDJSON, its last line is a summary whatever happened, and errors still have their lines on stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from mnemosyne.cli.progress import Progress, event_line
from mnemosyne.cli.style import Style, one_line
from mnemosyne.cli.summary import ErrorForm, Summary, empty_usage, error_lines, summary_lines

if TYPE_CHECKING:
    from mnemosyne.errors import MnemosyneError
    from mnemosyne.models import Event

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
    budget_usd: float | None = None
    budget_tokens: int | None = None
    resume: str | None = None


class Output:
    """Everything a command prints.

    Attributes:
        quiet: Only the final summary, and errors.
        about: Filled by the verbs as they learn it.
        deaf: Nobody reads stdout any more; work goes on, since a closed viewer is no reason to lose paid work.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.quiet = False
        self.about = About()
        self.deaf = False
        self._style = Style(sys.stdout)
        self._progress = Progress(self._style)
        self._began = time.monotonic()
        self._summarised = False
        for stream in (sys.stdout, sys.stderr):
            _never_fail_on(stream)

    def began(self) -> None:
        """Say which run is worked on, as the head of the progress lines."""
        if not self.as_json and not self.quiet:
            model = "the demo model" if self.about.demo else self.about.model or "the default models"
            self._print(self._style.paint(f"{self.about.run} with {one_line(model)}", "strong"))
            self._print(self._style.paint(f"in {one_line(self.about.workspace)}", "dim"))
            self._print("")
            self._print(self._progress.head())

    def event(self, event: Event) -> None:
        """Show an event as it comes: its line of progress, or its JSON."""
        if self.as_json:
            self._json("event", _event_form(event))
            return
        for line in self._progress.lines(event):
            if not self.quiet:
                self._print(line)

    def full_event(self, event: Event) -> None:
        """Show an event for ``mnemosyne events``: each one, with its data."""
        if self.as_json:
            self.event(event)
        else:
            self._print(event_line(event, self._style))

    def row(self, kind: str, form: Mapping[str, object], text: str) -> None:
        """Show one thing of a list: its JSON, or its line of text."""
        if self.as_json:
            self._json(kind, form)
        else:
            self._print(text)

    def text(self, lines: Iterable[str]) -> None:
        """Show text to people; nothing with ``--json``."""
        if not self.as_json:
            for line in lines:
                self._print(line)

    def summary(self, summary: Summary, *, with_error: bool = False) -> None:
        """Show the summary of a run; ``with_error`` where the error is the answer and not what went wrong."""
        self._summarised = True
        if self.as_json:
            return self._json("summary", summary)
        if not self.quiet and not with_error:
            self._print("")
        rejections = self._progress.rejections
        for line in summary_lines(summary, self._style, priced=_is_priced(summary), rejections=rejections):
            self._print(line)
        if with_error and summary["error"]:
            self.text(["", *error_lines(summary["error"])])
        return None

    def note(self, text: str) -> None:
        """Say something on stderr that is no error."""
        self._complain(text)

    def error(self, error: ErrorForm) -> None:
        """Show why a run is not done."""
        self._complain("\n".join(error_lines(error)))

    def fail(self, problem: MnemosyneError, exit_code: int, *, trace: str = "") -> int:
        """Show an error that ended the command, with the summary that ``--json`` owes; returns the exit code."""
        self._complain(trace.rstrip())
        self._complain(problem.format())
        if self.as_json and not self._summarised:
            form = problem.to_dict()
            error = ErrorForm(code=form["code"], message=form["message"], reason=form["reason"], hint=form["hint"])
            resumable = self.about.run is not None and exit_code != 1
            self.summary(self._own_summary("interrupted" if resumable else "failed", exit_code, error))
        return exit_code

    def interrupted(self, exit_code: int) -> int:
        """Say that a signal ended the command; returns the exit code."""
        if not self._summarised:
            if self.as_json or self.about.run:
                self.summary(self._own_summary("interrupted", exit_code, None))
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
        about = self.about
        return {
            "run": about.run,
            "state": state,
            "exit_code": exit_code,
            "model": about.model,
            "demo": about.demo,
            "workspace": about.workspace,
            "phases": [],
            "tasks": [],
            "usage": empty_usage(),
            "budget": {"usd": about.budget_usd, "tokens": about.budget_tokens},
            "restarts": 0,
            "resumes": 0,
            "seconds": round(time.monotonic() - self._began, 3),
            "error": error,
            "resume": about.resume if about.run and state == "interrupted" else None,
        }

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
    from mnemosyne.cli.inputs import has_price

    return has_price(summary["model"])


def _never_fail_on(stream: TextIO) -> None:
    """A character that the terminal's encoding lacks becomes a question mark, not the end of the command."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
