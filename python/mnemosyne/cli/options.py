"""Verbs and flags: what is accepted, said once. What the values mean is read in ``inputs``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from mnemosyne.errors import InvalidInput
from mnemosyne.names import AgentRole
from mnemosyne.redaction import hide_secret

if TYPE_CHECKING:
    from typing import Never

__all__ = ["MOST_CONCURRENT", "MOST_KILLS", "SHELLS", "WINDOW_PORT", "Options", "new_parser", "parse"]

WINDOW_PORT = 7411
"""Not an ephemeral one, so that a bookmark stays good; assigned to nobody that we know of."""

MOST_CONCURRENT = 64
MOST_KILLS = 32
"""More would leave less than three steps between two kills of the demo."""

SHELLS = ("bash", "zsh", "tcsh")

_LARGEST = 2**63 - 1
"""What the store can hold."""
_MOST_SHOWN = 60
"""Characters of a wrong value that a message repeats."""

_EPILOG = """\
exit codes:
  0 done   1 run failed or cancelled   2 bad input   3 environment (key, server, store)
  4 stopped by budget   130, 143 interrupted; 3, 4, 130 and 143 can be resumed
"""


class Options(argparse.Namespace):
    """The parsed command line; the values here are the defaults."""

    handler: str
    """``module:function`` of the verb, imported only when it runs."""
    command: str = "mnemosyne"
    """The words that name the verb, for hints."""
    store: Path | None = None
    json: bool = False
    debug: bool = False
    quiet: bool = False
    prompt: str | None = None
    plan: str | None = None
    workspace: Path | None = None
    max_concurrent: int = 4
    budget_usd: float | None = None
    budget_tokens: int | None = None
    budget_calls: int | None = None
    budget_seconds: float | None = None
    budget_depth: int | None = None
    budget_per_task: Mapping[str, float] | None = None
    budget_per_agent: Mapping[str, float] | None = None
    model: str | None = None
    base_url: str | None = None
    api_key_file: Path | None = None
    agent: Sequence[str] = ()
    run: str | None = None
    conversation: str | None = None
    evidence: str | None = None
    task: str | None = None
    note: str | None = None
    since: int = 0
    follow: bool = False
    port: int = 0
    serve: bool = False
    window_port: int = WINDOW_PORT
    log: Path | None = None
    faults: Path | None = None
    kill: int | None = None
    error_code: str | None = None
    shell: str = "bash"
    to: Path | None = None
    older_than: int = 30
    name: str | None = None
    role: str | None = None
    source: str | None = None
    size: int | None = None
    item: str | None = None
    key: str | None = None
    to_place: Literal["keychain", "file"] | None = None


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are our errors."""

    def error(self, message: str) -> Never:
        raise _usage(message, self.prog)


_Verbs: TypeAlias = "argparse._SubParsersAction[_Parser]"


class _Version(argparse.Action):
    """Prints the version; a class of its own so that nobody else pays for looking it up."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import mnemosyne

        print(f"mnemosyne {mnemosyne.__version__}")
        parser.exit()


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line.

    Raises:
        InvalidInput: It cannot be understood (MN-0115).
        SystemExit: After ``--help`` and ``--version``.
    """
    try:
        return _parsed(arguments)
    except InvalidInput:
        if "set-key" in arguments:  # what it quotes may be a key (SECRET-1)
            for word in arguments:
                hide_secret(word)
        raise


def _parsed(arguments: Sequence[str]) -> Options:
    options, unknown = new_parser().parse_known_args(arguments, Options())
    if unknown:
        raise _usage(f"unrecognized arguments: {' '.join(unknown)}", options.command)
    if "handler" not in vars(options):
        raise _usage("no command was given", "mnemosyne")
    return options


def _usage(message: str, command: str) -> InvalidInput:
    return InvalidInput(message, code="MN-0115", hint=f"{command} --help")


def new_parser() -> _Parser:
    """Return the parser of the whole command line."""
    common = _strict(_Parser(add_help=False))
    group = common.add_argument_group("everywhere")
    group.add_argument(
        "--store", type=_path, metavar="FILE", help="the store (default: MNEMOSYNE_STORE, else XDG state)"
    )
    group.add_argument("--json", action="store_true", help="one JSON object per line on stdout, a summary as the last")
    group.add_argument("--debug", action="store_true", help="show tracebacks")
    description = "Turn a sentence into accepted files, with agents that a supervision tree keeps alive."
    parser = _strict(_Parser(prog="mnemosyne", parents=[common], description=description, epilog=_EPILOG))
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    verbs = parser.add_subparsers(metavar="COMMAND", title="commands")

    def verb(name: str, handler: str, text: str) -> _Parser:
        added = _strict(verbs.add_parser(name, parents=[common], help=text, description=_sentence(text)))
        added.set_defaults(handler=f"mnemosyne.cli.{handler}", command=f"mnemosyne {name}")
        return added

    _orchestrate(verb("orchestrate", "orchestrate:orchestrate", "walk a prompt or a plan to accepted files"))
    _resume(verb("resume", "resume:resume", "continue an interrupted run"))
    _retry(verb("retry", "retry:retry", "give a task that failed new attempts, and go on with its run"))
    verb("runs", "runs:runs", "list the runs of the store")
    _show(verb("show", "runs:show", "show one run: phases, tasks, evidence, cost"))
    _events(verb("events", "runs:events", "show what happened in a run"))
    _run(verb("cancel", "runs:cancel", "cancel a run, also one of another process"))
    _living(verb("drain", "agents:drain", "take in no more work, let what runs finish, leave the run to be resumed"))
    _agents(
        verb("agents", "agents:agents", "list the agents of a run, add, restart, stop, release or scale them"), common
    )
    _run(verb("pause", "runs:pause", "begin nothing more of a run until resume; what is under way is finished"))
    _dead(verb("dead", "dead:listed", "list the items that took their agents down too often"), common)
    _demo(verb("demo", "demo:demo", "run the offline demo: no key, no network, no cost"), common)
    _doctor(verb("doctor", "doctor:doctor", "check that everything is there which a run needs"))
    _secrets(verb("secrets", "secrets:status", "say where keys are kept; begin, replace or clear what is kept"), common)
    _config(verb("config", "secrets:show_key", "keep, show the source of, or forget the key of a server"), common)
    _serve(verb("serve", "serve:serve", "open the window: a page and an API on loopback, for who looks and commands"))
    verb("stats", "stats:stats", "add up what the store has seen: claims, tasks, reviews, tokens, cost")
    text = "print what makes a shell complete verbs and flags"
    verb("completion", "completion:completion", text).add_argument("shell", choices=SHELLS, help="which shell")
    _explain(verb("explain", "explain:explain", "say what an error code means and what to do"))
    _store(verb("store", "store:check", "look after the store: check, backup, prune"), common)
    return parser


def _orchestrate(parser: _Parser) -> None:
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="what to make; @FILE reads a file, - reads stdin")
    parser.add_argument("--plan", metavar="FILE", help="start from a plan (JSON; - reads stdin), without a prompt")
    _run_flags(parser, workspace="the folder to work in (default: the current one)")


def _run_flags(parser: _Parser, *, workspace: str) -> None:
    parser.add_argument("--workspace", type=_path, metavar="DIR", help=workspace)
    _work_flags(parser)
    _spending_flags(parser)


def _work_flags(parser: _Parser) -> None:
    parser.add_argument(
        "--max-concurrent", type=_whole(1, MOST_CONCURRENT), metavar="N", help="tasks at the same time (default: 4)"
    )
    parser.add_argument("--model", type=_name, metavar="M", help="model for all roles; demo is the offline one")
    parser.add_argument("--base-url", metavar="URL", help="any server that speaks the Messages API")
    parser.add_argument(
        "--agent",
        action="append",
        metavar="ROLE=module:Class",
        help="a class of yours in a role's place, found from the current folder; may be repeated",
    )


def _spending_flags(parser: _Parser) -> None:
    budget = parser.add_argument_group("budget", "what is reached stops the run, which can be resumed with more")
    budget.add_argument("--budget-usd", type=_money, metavar="X", help="stop before more than X dollars are spent")
    budget.add_argument("--budget-tokens", type=_whole(1), metavar="N", help="stop before more than N tokens are used")
    budget.add_argument("--budget-calls", type=_whole(1), metavar="N", help="stop before the model is asked more often")
    budget.add_argument("--budget-seconds", type=_seconds, metavar="X", help="stop after X seconds of work")
    budget.add_argument(
        "--budget-depth",
        type=_whole(1),
        metavar="N",
        help="1: agents may not hand their work on to others, 2: once, ...",
    )
    for whom in ("task", "agent"):
        budget.add_argument(
            f"--budget-per-{whom}",
            type=_limits,
            metavar="KIND=N,...",
            help=f"the same for each {whom}; for example usd=1.50,calls=40",
        )
    _key_flag(parser)
    parser.add_argument("--serve", action="store_true", help="open the window too, as `mnemosyne serve` does")
    parser.add_argument(
        "--window-port", type=_whole(0, 65535), metavar="N", help=f"for --serve (default: {WINDOW_PORT})"
    )
    parser.add_argument("--quiet", action="store_true", help="only the final summary")


def _key_flag(parser: _Parser) -> None:
    parser.add_argument("--api-key-file", type=_path, metavar="F", help="read the API key from F (mode 0600)")


def _serve(parser: _Parser) -> None:
    parser.add_argument(
        "--port",
        dest="window_port",
        type=_whole(0, 65535),
        metavar="N",
        help=f"0: any free one (default: {WINDOW_PORT})",
    )
    # How work is done that comes in through the window.
    _work_flags(parser)
    _key_flag(parser)


def _resume(parser: _Parser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN", help="default: the only interrupted run, or this folder's")
    _spending_flags(parser)


def _retry(parser: _Parser) -> None:
    _run(parser)
    parser.add_argument("task", metavar="TASK", help="the id of a task that failed")
    parser.add_argument("--note", metavar="TEXT", help="guidance for the next attempts; @FILE or - as for a prompt")
    _spending_flags(parser)


def _run(parser: _Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="the id of the run")


def _living(parser: _Parser, flag: str = "run") -> None:
    how = {"nargs": "?"} if flag == "run" else {}
    parser.add_argument(flag, metavar="RUN", help="default: the only run that is worked on", **how)  # type: ignore[arg-type]


def _agents(parser: _Parser, common: _Parser) -> None:
    _living(parser, "--run")
    verbs = parser.add_subparsers(metavar="[add|restart|stop|release|scale]", title="commands")

    def verb(name: str, text: str) -> _Parser:
        added = _strict(verbs.add_parser(name, parents=[common], help=text, description=_sentence(text)))
        added.set_defaults(handler=f"mnemosyne.cli.agents:{name}", command=f"mnemosyne agents {name}")
        _living(added, "--run")
        return added

    for name, text in (
        ("restart", "give an agent a new generation; also starts one that was stopped"),
        ("stop", "end an agent; what it holds may finish within its shutdown time"),
        ("release", "let an agent out of quarantine"),
    ):
        verb(name, text).add_argument("name", metavar="AGENT", help="for example executor-1")
    add = verb("add", "add an agent to a role, like its first ones")
    add.add_argument("role", metavar="ROLE", choices=list(AgentRole), help=", ".join(AgentRole))
    add.add_argument(
        "--class", dest="source", metavar="module:Class", help="of this class instead; the run's process imports it"
    )
    scale = verb("scale", "make the pool of a role as large as asked")
    scale.add_argument("role", metavar="ROLE", choices=list(AgentRole), help=", ".join(AgentRole))
    scale.add_argument("size", metavar="N", type=_whole(0, MOST_CONCURRENT), help="how many agents it is to have")


def _show(parser: _Parser) -> None:
    _run(parser)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--evidence", metavar="TASK", help="instead: all that was seen and said of a task")
    instead.add_argument(
        "--conversation", metavar="TASK", help="instead: what was said and done for a task, or a phase by its name"
    )


def _events(parser: _Parser) -> None:
    _run(parser)
    parser.add_argument("--since", type=_whole(0), metavar="N", help="only events after sequence N")
    parser.add_argument("--follow", action="store_true", help="wait for more until the run ends")


def _doctor(parser: _Parser) -> None:
    parser.add_argument("--base-url", metavar="URL", help="connect to this server too")
    _key_file(parser)


def _explain(parser: _Parser) -> None:
    parser.add_argument("error_code", nargs="?", metavar="CODE", help="for example MN-0203; default: list all codes")


def _demo(parser: _Parser, common: _Parser) -> None:
    _run_flags(parser, workspace="an empty folder, or one with the sample (default: ./mnemosyne-demo or the next free)")
    _faults(parser)
    text = "kill the run N times with kill -9, and resume it each time"
    parser.add_argument("--kill", type=_whole(1, MOST_KILLS), metavar="N", help=text)
    verbs = parser.add_subparsers(metavar="[serve]", title="commands")
    text = "serve the demo model over HTTP on loopback; the base URL is the first line"
    serve = _strict(verbs.add_parser("serve", parents=[common], help=text, description=_sentence(text)))
    serve.add_argument("--port", type=_whole(0, 65535), metavar="N", help="default: any free one")
    serve.add_argument("--log", type=_path, metavar="FILE", help="append a JSON line per request")
    _faults(serve)
    serve.set_defaults(handler="mnemosyne.cli.demo:serve", command="mnemosyne demo serve")


def _dead(parser: _Parser, common: _Parser) -> None:
    verbs = parser.add_subparsers(metavar="[requeue|discard]", title="commands")
    for name, text in (
        ("requeue", "give an item to the queue again, with its crashes forgotten"),
        ("discard", "forget an item, with its journal and its keys"),
    ):
        added = _strict(verbs.add_parser(name, parents=[common], help=text, description=_sentence(text)))
        added.add_argument("item", metavar="ITEM", help="the id of a dead letter")
        added.add_argument("--note", metavar="TEXT", help="why, for its event")
        added.set_defaults(handler=f"mnemosyne.cli.dead:{name}", command=f"mnemosyne dead {name}")


def _store(parser: _Parser, common: _Parser) -> None:
    verbs = parser.add_subparsers(metavar="check|backup|prune", title="commands", required=True)

    def verb(name: str, text: str) -> _Parser:
        added = _strict(verbs.add_parser(name, parents=[common], help=text, description=_sentence(text)))
        added.set_defaults(handler=f"mnemosyne.cli.store:{name}", command=f"mnemosyne store {name}")
        return added

    verb("check", "look at every page of the store and at what its rows promise")
    backup = verb("backup", "copy the store, also while it is in use; nothing is overwritten")
    backup.add_argument("to", type=_path, metavar="FILE", help="the copy")
    prune = verb("prune", "forget runs and items that ended long ago, and give their space back")
    prune.add_argument(
        "--older-than", type=_whole(0, 36_500), metavar="DAYS", help="what ended so many days ago (default: 30)"
    )


def _secrets(parser: _Parser, common: _Parser) -> None:
    verbs = parser.add_subparsers(metavar="init|status|rotate|clear", title="commands", required=True)
    init = _secret(verbs, common, "secrets", "init", "choose where keys are kept, and keep one")
    init.add_argument(
        "--to",
        dest="to_place",
        choices=("keychain", "file"),
        help="the OS keychain, or a file encrypted with age (default: the keychain, if it answers)",
    )
    _key_file(_secret(verbs, common, "secrets", "status", "list the places where a key may be, and which one is used"))
    _secret(verbs, common, "secrets", "rotate", "put a new key in the place of the kept one; encrypt the age file anew")
    _secret(verbs, common, "secrets", "clear", "forget all keys that are kept, of all servers")


def _config(parser: _Parser, common: _Parser) -> None:
    verbs = parser.add_subparsers(metavar="set-key|show-key|unset-key", title="commands", required=True)
    text = "keep a key, which is asked for, or read from stdin"
    key = _secret(verbs, common, "config", "set-key", text)
    key.add_argument(
        "key", nargs="?", metavar="KEY", help="not recommended: others can see it in the list of processes"
    )
    _key_file(_secret(verbs, common, "config", "show-key", "say where the key comes from; the key is never shown"))
    _secret(verbs, common, "config", "unset-key", "forget the key that is kept for a server")


def _secret(verbs: _Verbs, common: _Parser, group: str, name: str, text: str) -> _Parser:
    added = _strict(verbs.add_parser(name, parents=[common], help=text, description=_sentence(text)))
    handler = f"mnemosyne.cli.secrets:{name.replace('-', '_')}"
    added.set_defaults(handler=handler, command=f"mnemosyne {group} {name}")
    added.add_argument("--base-url", metavar="URL", help="whose key (default: ANTHROPIC_BASE_URL, else Anthropic's)")
    return added


def _key_file(parser: _Parser) -> None:
    parser.add_argument("--api-key-file", type=_path, metavar="F", help="the key file that a run would be given")


def _faults(parser: _Parser) -> None:
    parser.add_argument(
        "--faults", type=_path, metavar="FILE", help="a fault script: what goes wrong on purpose (JSON)"
    )


def _strict(parser: _Parser) -> _Parser:
    """Set what all our parsers have in common."""
    # Values that were not given are not set, so that `--store X show` is not undone by the verb's own default.
    parser.argument_default = argparse.SUPPRESS
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.allow_abbrev = False
    return parser


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _whole(lowest: int, highest: int = _LARGEST) -> Callable[[str], int]:
    wanted = f"a whole number from {lowest} to {highest}"
    if highest == _LARGEST:
        wanted = f"a whole number of at least {lowest}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = lowest - 1
        if value > _LARGEST:
            raise argparse.ArgumentTypeError(f"{_short(text)} is too large a number")
        if value < lowest or value > highest:
            raise argparse.ArgumentTypeError(f"{_short(text)} is not {wanted}")
        return value

    return read


def _path(text: str) -> Path:
    # Path("") is the current folder: a variable that is not set must not choose what is worked on.
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{_short(text)}: the home folder of that user is not known") from error


def _name(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def _short(text: str) -> str:
    return repr(text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}...")


def _money(text: str) -> float:
    return _more_than_nothing(text, "an amount of more than 0 dollars")


def _seconds(text: str) -> float:
    return _more_than_nothing(text, "a number of more than 0 seconds")


def _more_than_nothing(text: str, wanted: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not math.isfinite(value) or value <= 0:
        raise argparse.ArgumentTypeError(f"{_short(text)} is not {wanted}")
    return value


_LIMITS: dict[str, Callable[[str], float]] = {
    "usd": _money,
    "tokens": _whole(1),
    "calls": _whole(1),
    "seconds": _seconds,
    "depth": _whole(1),
}


def _limits(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in _LIMITS:
            raise argparse.ArgumentTypeError(f"{_short(part)} is not one of {', '.join(f'{key}=N' for key in _LIMITS)}")
        if name in found:
            raise argparse.ArgumentTypeError(f"{name} is given twice")
        found[name] = _LIMITS[name](value)
    return found
