"""The command line, section 4 of the public contract: one file per verb group, and here the one door in and out.

Every way out of a command passes ``main``, so one place turns an error into its lines, its summary and its exit
code. Nothing heavy is imported before a verb runs: ``mnemosyne --help`` costs argparse and no more.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from mnemosyne.cli.options import Options, parse
from mnemosyne.cli.output import Output
from mnemosyne.errors import BudgetExceeded, EnvironmentProblem, InvalidInput, MnemosyneError

if TYPE_CHECKING:
    from typing import Never

__all__ = ["main"]


_LOG_VARIABLES = ("MNEMOSYNE_LOG_FILE", "MNEMOSYNE_LOG_LEVEL", "MNEMOSYNE_LOG_FORMAT")


class _Redacted(logging.Formatter):
    """Plain text without secrets (SECRET-1)."""

    def format(self, record: logging.LogRecord) -> str:
        from mnemosyne.redaction import redact

        return redact(super().format(record))


class _Terminated(KeyboardInterrupt):
    """SIGTERM outside of a run's own handling."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: The arguments after the command's name; None takes those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Read off the arguments themselves, since even a refused flag has to be answered in the form that was asked for.
    output = Output(as_json="--json" in arguments)
    debug = "--debug" in arguments
    before = _on_terminate(_raise_terminated)
    try:
        options = parse(arguments)
        output.quiet, output.store = options.quiet, options.store
        _begin_log()
        return _handler(options)(options, output)
    except SystemExit as request:  # argparse, after --help and --version
        return request.code if isinstance(request.code, int) else 0
    except MnemosyneError as problem:
        return output.fail(problem, _exit_code(problem), trace=_trace(problem, debug))
    except KeyboardInterrupt as interrupt:
        return output.interrupted(143 if isinstance(interrupt, _Terminated) else 130)
    except Exception as error:
        found = _unexpected(error, debug)
        return output.fail(found, _exit_code(found), trace=_trace(error, debug))
    finally:
        _end_log()
        _on_terminate(before)
        if argv is None:
            # The answer is out, and the process is about to end: a late signal must not turn "done" into a death.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)


def _handler(options: Options) -> Callable[[Options, Output], int]:
    module, name = options.handler.split(":")
    handler: Callable[[Options, Output], int] = getattr(importlib.import_module(module), name)
    return handler


def _begin_log() -> None:
    """Write a log if the environment asks for one. Without one, what a person has to know is shown by the command."""
    if logging.lastResort is not None:  # what agents log elsewhere than in our loggers goes to stderr
        logging.lastResort.setFormatter(_Redacted())
    if os.environ.get("ANTHROPIC_LOG"):  # the SDK gives the root a handler of its own, unless there is one
        handler = logging.StreamHandler()
        handler.setFormatter(_Redacted("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.basicConfig(handlers=[handler])
    if _log_is_asked_for():
        from mnemosyne.logging_config import configure_logging

        configure_logging()
    elif not (ours := logging.getLogger("mnemosyne")).handlers:
        ours.addHandler(logging.NullHandler())


def _end_log() -> None:
    if _log_is_asked_for():
        from mnemosyne.logging_config import stop_logging

        stop_logging()


def _log_is_asked_for() -> bool:
    return any(os.environ.get(name) for name in _LOG_VARIABLES)


def _exit_code(problem: MnemosyneError) -> int:
    if isinstance(problem, InvalidInput):
        return 2
    if isinstance(problem, EnvironmentProblem):
        return 3
    return 4 if isinstance(problem, BudgetExceeded) else 1


def _unexpected(error: Exception, debug: bool) -> MnemosyneError:
    if isinstance(error, FileNotFoundError) and _folder_is_gone():
        return EnvironmentProblem(
            "the current folder does not exist any more",
            code="MN-0212",
            hint="go to a folder that exists, and run the command again",
        )
    return MnemosyneError(
        f"unexpected {type(error).__name__}: {error}",
        code="MN-0900",
        reason="this is a fault of mnemosyne, or of a module it was given",
        hint="the traceback above says where" if debug else "run the same command again with --debug",
    )


def _folder_is_gone() -> bool:
    try:
        return not os.getcwd()
    except OSError:
        return True


def _trace(error: Exception, debug: bool) -> str:
    if not debug:
        return ""
    from mnemosyne.error_context import create_error_context
    from mnemosyne.redaction import redact

    return f"{redact(traceback.format_exc())}\n{create_error_context(error).format()}"


def _raise_terminated(_number: int, _frame: FrameType | None) -> Never:
    raise _Terminated


def _on_terminate(handler: Callable[[int, FrameType | None], object] | int | None) -> signal._HANDLER:
    """Set the handler of SIGTERM and return the one before; nothing in a thread that may not set any."""
    try:
        return signal.signal(signal.SIGTERM, handler)
    except (ValueError, TypeError):
        return None
