"""``mnemosyne secrets`` and ``mnemosyne config``: where the key is kept. The key itself is never shown (SECRET-1)."""

from __future__ import annotations

import sys
from getpass import getpass
from typing import TYPE_CHECKING

from mnemosyne.cli.style import one_line
from mnemosyne.errors import InvalidInput

if TYPE_CHECKING:
    from mnemosyne.cli.options import Options
    from mnemosyne.cli.output import Output
    from mnemosyne.config.secrets import SecretsManager

__all__ = ["clear", "init", "rotate", "set_key", "show_key", "status", "unset_key"]


def init(options: Options, output: Output) -> int:
    """Choose where keys are kept, make it ready, and keep one if it is given."""
    manager = _manager(options)
    place = manager.choose(options.to_place)
    key = _given_key(manager)
    if key:
        _kept(manager, manager.keep(key, options.to_place), output)
    else:
        _say(output, manager, place, "keys are kept in", "next: mnemosyne config set-key")
    return 0


def status(options: Options, output: Output) -> int:
    """Show every place where a key may be, in their order, and which one is used."""
    manager = _manager(options)
    used = False
    for place in manager.places():
        first = place.holds and not used
        used = used or place.holds
        said = ("used" if first else "a key, not used") if place.holds else "no key"
        mark, colour = ("✓", "good") if first else ("-", "dim")
        form = {"place": place.name, "server": manager.server, "holds": place.holds, "used": first}
        detail = one_line(place.detail)
        cells = [(mark, 2, colour), (said, 17, colour), (f"{place.name}: {detail}" if detail else place.name, 0, "")]
        output.row("place", {**form, "detail": detail}, cells)
    return 0


def rotate(options: Options, output: Output) -> int:
    """Put a new key in the place of the kept one, and encrypt the age file anew.

    Raises:
        InvalidInput: No key was given, and there is no age file (MN-0643).
    """
    manager = _manager(options)
    key = _given_key(manager)
    if key:
        _kept(manager, manager.keep(key), output)
    if manager.rotate():
        _say(output, manager, manager.age_file.path, "under a new identity:")
    elif not key:
        raise _no_key_given()
    return 0


def clear(options: Options, output: Output) -> int:
    """Forget all keys of all servers."""
    manager = _manager(options)
    for place in manager.clear() or ["nothing was kept"]:
        _say(output, manager, place, "cleared:")
    return 0


def set_key(options: Options, output: Output) -> int:
    """Keep a key: of the argument, else asked for, else of stdin.

    Raises:
        InvalidInput: No key was given (MN-0643), or it is none (MN-0151).
    """
    manager = _manager(options)
    key = options.key
    if key is not None:
        output.note(
            "warning: others may see an argument in the list of processes, and the shell may keep it in its history; "
            "leave it out, and you are asked for it"
        )
    key = key or _given_key(manager)
    if not key:
        raise _no_key_given()
    _kept(manager, manager.keep(key), output)
    return 0


def show_key(options: Options, output: Output) -> int:
    """Show where the key comes from that a run would use.

    Raises:
        MissingCredential: There is none (MN-0201).
    """
    manager = _manager(options)
    source = manager.resolve().source
    _say(output, manager, source or "none, and none is needed", f"the key for {manager.server}:")
    return 0


def unset_key(options: Options, output: Output) -> int:
    """Forget the key of a server."""
    manager = _manager(options)
    for place in manager.forget() or ["nothing was kept"]:
        _say(output, manager, place, "forgotten:")
    _warn_of_others(manager, "", output)
    return 0


def _manager(options: Options) -> SecretsManager:
    from mnemosyne.config.secrets import SecretsManager
    from mnemosyne.config.settings import check_base_url

    base_url = None if options.base_url is None else check_base_url(options.base_url)
    return SecretsManager(options.api_key_file, base_url)


def _given_key(manager: SecretsManager) -> str:
    """Ask for a key without showing it, or read it from stdin; empty where none is given."""
    from mnemosyne.config.secrets import LARGEST_KEY

    if sys.stdin is None:
        return ""
    if sys.stdin.isatty():
        return getpass(f"API key for {manager.server} (not shown; empty for none): ").strip()
    return sys.stdin.buffer.read(LARGEST_KEY + 1).decode("ascii", "replace").strip()


def _kept(manager: SecretsManager, place: str, output: Output) -> None:
    _say(output, manager, place, f"the key for {manager.server} is kept in")
    _warn_of_others(manager, place, output)


def _warn_of_others(manager: SecretsManager, kept_in: str, output: Output) -> None:
    """Say so where another place wins: the next run would use a key that the user does not expect."""
    first = next((place.name for place in manager.places() if place.holds), kept_in)
    if first != kept_in:
        output.note(f"warning: {first} holds a key too, and it is the one that is used")


def _say(output: Output, manager: SecretsManager, place: object, text: str, more: str = "") -> None:
    form = {"server": manager.server, "place": str(place)}
    output.block("secrets", form, [f"{text} {one_line(place)}", *([more] if more else [])])


def _no_key_given() -> InvalidInput:
    return InvalidInput(
        "no key was given",
        code="MN-0643",
        reason="standard input is empty",
        hint="type it when asked, or: mnemosyne config set-key < FILE",
    )
