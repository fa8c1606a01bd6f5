"""The log: one stream in time order, from Rust and from Python, that tells of an item from its submission to its end.

Rust's lines come through Python's ``logging`` under ``mnemosyne.*`` (``rust/bridge/src/log.rs``), so a program's own
handlers see them; nothing has to be configured for that. ``configure_logging`` adds our own: a file or standard
error, as text or JSON. Every line carries what it is about: run, item, attempt, role, agent, generation, epoch. In
text each line of a traceback or a box does so too: ``grep ITEM_ID`` finds the whole, and nobody can forge a line.

Whoever logs only appends to a bounded list. One thread sorts what has come by its time, since Rust's lines arrive a
little later than they were said, and writes it: a slow or full disk costs lines, which are counted and said, and never
holds up work. Secrets are taken out at the last moment, of the whole line (SECRET-1).
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import stat
import sys
import threading
import time
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Literal, TextIO

from mnemosyne.errors import EnvironmentProblem, InvalidInput
from mnemosyne.log_context import log_context
from mnemosyne.redaction import redact

__all__ = ["configure_logging", "get_logger", "stop_logging"]

LEVELS = ("debug", "info", "warning", "error")
_ROOT = "mnemosyne"
_LIMIT = 20_000
"""Lines that wait to be written; at 300 bytes each they are 6 MB."""
_SORTING_SECONDS = 0.5
"""A line waits as long before it is written. Rust's come through the agents' loop, which an import holds for 0.2 s."""
_LARGEST_FILE = 10_000_000
_FILES_KEPT = 5
_FLUSH_SECONDS = 2.0
"""How long the end of the process waits for the last lines: a disk that hangs must not hang the process."""

_writer: _Writer | None = None
_changing = threading.Lock()


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; a name outside of ``mnemosyne`` becomes one inside."""
    return logging.getLogger(name if name == _ROOT or name.startswith(f"{_ROOT}.") else f"{_ROOT}.{name}")


def configure_logging(
    level: str | None = None,
    *,
    file: Path | None = None,
    format: Literal["text", "json"] | None = None,
    stream: TextIO | None = None,
    largest_file: int = _LARGEST_FILE,
    files_kept: int = _FILES_KEPT,
) -> None:
    """Write the log of this process; called again, it replaces what was configured before.

    Args:
        level: ``info``, or with exceptions ``info,mnemosyne.bridge=debug``; by default ``MNEMOSYNE_LOG_LEVEL``, else
            ``info``.
        file: Where to; by default ``MNEMOSYNE_LOG_FILE``, else standard error. Made with mode 0600.
        format: By default ``MNEMOSYNE_LOG_FORMAT``, else ``text``.
        stream: Instead of standard error.
        largest_file: Bytes after which the file is put aside as ``FILE.1``, the one before as ``FILE.2``, and so on.
        files_kept: How many are put aside.

    Raises:
        InvalidInput: There is no such level or format (MN-0620).
        EnvironmentProblem: The file cannot be written (MN-0621).
    """
    levels = _read_levels(level or os.environ.get("MNEMOSYNE_LOG_LEVEL") or "info")
    form = format or os.environ.get("MNEMOSYNE_LOG_FORMAT") or "text"
    if form not in ("text", "json"):
        raise InvalidInput(
            f"there is no log format {form!r}", code="MN-0620", hint="set MNEMOSYNE_LOG_FORMAT to text or json"
        )
    named = os.environ.get("MNEMOSYNE_LOG_FILE")
    file = file or (Path(named).expanduser() if named and stream is None else None)
    sink = _stream_sink(stream or sys.stderr) if file is None else _file_sink(file, largest_file, files_kept)
    sink.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    global _writer
    with _changing:
        _stop()
        for name, number in levels.items():
            logging.getLogger(name).setLevel(number)
        _writer = _Writer(sink)
        logging.getLogger(_ROOT).addHandler(_writer)


def stop_logging() -> None:
    """Write what waits, and take away what ``configure_logging`` added; levels stay."""
    with _changing:
        _stop()


def _stop() -> None:
    global _writer
    if _writer is not None:
        logging.getLogger(_ROOT).removeHandler(_writer)
        _writer.close()
        _writer = None


def _read_levels(text: str) -> dict[str, int]:
    levels: dict[str, int] = {}
    for part in text.split(","):
        name, separator, level = part.strip().rpartition("=")
        if level.lower() not in LEVELS or (separator and not name.startswith(_ROOT)):
            raise InvalidInput(
                f"the log level {part.strip()!r} cannot be used",
                code="MN-0620",
                reason=f"the levels are {', '.join(LEVELS)}, and modules begin with {_ROOT}",
                hint="for example MNEMOSYNE_LOG_LEVEL=info,mnemosyne.bridge=debug",
            )
        levels[name or _ROOT] = logging.getLevelName(level.upper())
    return levels


# -- writing -------------------------------------------------------------------------------------------------------


class _Writer(logging.Handler):
    """Takes records from any thread without waiting, and has one thread write them in the order of their times."""

    def __init__(self, sink: logging.Handler) -> None:
        super().__init__()
        self._sink = sink
        self._waiting: list[logging.LogRecord] = []
        self._lost = 0
        self._guard = threading.Lock()
        self._wanted = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._write, name="mnemosyne-log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def handle(self, record: logging.LogRecord) -> bool:
        # Not the base's: its lock is held while a record is handled, and nothing here has to wait for another.
        if self.filter(record):
            self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        # What it is about is known here and not in the thread that writes; so is the text of its arguments.
        record.mnemosyne = log_context(record)
        if record.args:
            with contextlib.suppress(Exception):
                record.msg, record.args = record.getMessage(), None
        with self._guard:
            if len(self._waiting) >= _LIMIT:
                self._lost += 1
                return
            self._waiting.append(record)
        self._wanted.set()

    def close(self) -> None:
        """Write what waits, for a while, and end."""
        if self._ending:
            return
        self._ending = True
        self._wanted.set()
        self._thread.join(_FLUSH_SECONDS)
        atexit.unregister(self.close)
        super().close()

    def _write(self) -> None:
        while not self._ending:
            self._wanted.wait()
            if not self._ending:
                time.sleep(_SORTING_SECONDS / 2)
            self._wanted.clear()
            if self._hand_over(time.time() - _SORTING_SECONDS):
                self._wanted.set()
        self._hand_over(float("inf"))
        with contextlib.suppress(OSError, ValueError):
            self._sink.close()

    def _hand_over(self, until: float) -> bool:
        """Write all that is old enough; whether something is left."""
        with self._guard:
            ready = [record for record in self._waiting if record.created <= until]
            self._waiting = [record for record in self._waiting if record.created > until]
            lost, self._lost, left = self._lost, 0, bool(self._waiting)
        ready.sort(key=lambda record: record.created)
        if lost:
            text = f"{lost} log lines were lost: they came faster than they could be written"
            ready.append(logging.LogRecord("mnemosyne.log", logging.WARNING, "", 0, text, None, None))
        for record in ready:
            self._sink.handle(record)
        with contextlib.suppress(OSError, ValueError):  # a full disk, a stream that was closed
            self._sink.flush()
        return left


def _quietly(sink: logging.Handler) -> logging.Handler:
    """A line that cannot be written is lost; a traceback of ours on standard error would help nobody."""
    sink.handleError = lambda record: None  # type: ignore[method-assign]
    return sink


def _stream_sink(stream: TextIO) -> logging.Handler:
    return _quietly(logging.StreamHandler(stream))


def _file_sink(file: Path, largest: int, kept: int) -> logging.Handler:
    try:
        return _quietly(_PrivateFile(file, largest, kept))
    except OSError as error:
        raise EnvironmentProblem(
            f"the log file {file} cannot be written",
            code="MN-0621",
            reason=error.strerror or str(error),
            hint="set MNEMOSYNE_LOG_FILE to a file that you may write, or unset it",
        ) from error


class _PrivateFile(RotatingFileHandler):
    """A log holds what was worked on: nobody else may read it."""

    def __init__(self, file: Path, largest: int, kept: int) -> None:
        super().__init__(file, maxBytes=largest, backupCount=kept, encoding="utf-8", errors="backslashreplace")

    def _open(self) -> TextIO:  # type: ignore[override]
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.fchmod(descriptor, 0o600)
            return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")
        except BaseException:
            os.close(descriptor)
            raise


# -- formats -------------------------------------------------------------------------------------------------------


def _at(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # arguments that do not fit
        return str(record.msg)


class _TextFormatter(logging.Formatter):
    """``time LEVEL logger [what it is about] text``; each further line of the text begins like the first."""

    def format(self, record: logging.LogRecord) -> str:
        text = _text_of(record)
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        about = " ".join(f"{name}={value}" for name, value in log_context(record).items())
        head = f"{_at(record)} {record.levelname:<7} {record.name}{f' [{about}]' if about else ''}"
        lines = [_visible(line) for line in redact(text).splitlines() or [""]]
        return "\n".join([f"{head} {lines[0]}", *(f"{head} | {line}" for line in lines[1:])])


class _JsonFormatter(logging.Formatter):
    """One object per line: ``time, level, logger, message``, what it is about, and ``exception`` with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        form: dict[str, object] = {
            "time": _at(record),
            "level": record.levelname,
            "logger": record.name,
            "message": redact(_text_of(record)),
            **log_context(record),
        }
        if record.exc_info:
            form["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(form, separators=(",", ":"))


def _visible(line: str) -> str:
    """Control characters written out: what a model says must not move the cursor of whoever reads the log."""
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() or char == "\t" else ascii(char)[1:-1] for char in line)
