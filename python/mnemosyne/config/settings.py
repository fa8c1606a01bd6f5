"""Where things are on this machine: the store, the state beside it, and the Python that child processes run on."""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path
from urllib.parse import urlsplit

from mnemosyne.errors import EnvironmentProblem, InvalidInput

__all__ = ["ANTHROPIC", "check_base_url", "config_directory", "default_store", "interpreter", "state_directory"]

ANTHROPIC = "https://api.anthropic.com"
"""The server where none is named."""

_INTERPRETER_NAME = re.compile(r"(python|pypy)[0-9.]*[a-z]?(\.exe)?", re.IGNORECASE)


def default_store() -> Path:
    """Return the store used when none is named: ``MNEMOSYNE_STORE``, else in the XDG state directory.

    It is not in the workspace, because a workspace is the user's and a run must not leave files of its own there.
    """
    named = os.environ.get("MNEMOSYNE_STORE")
    if named:
        return Path(named).expanduser().absolute()
    return _xdg("XDG_STATE_HOME", ".local/state") / "mnemosyne" / "store.db"


def config_directory() -> Path:
    """Return the folder for what a user sets and keeps: ``mnemosyne`` in the XDG configuration directory."""
    return _xdg("XDG_CONFIG_HOME", ".config") / "mnemosyne"


def _xdg(variable: str, default: str) -> Path:
    # The XDG specification says that a relative path is invalid and has to be ignored.
    named = os.environ.get(variable, "")
    return Path(named) if os.path.isabs(named) else Path.home() / default


def state_directory(store: Path) -> Path:
    """Return the directory that holds the trees and shadow repositories of the runs in ``store``.

    It lies beside the store and carries its name, so two stores in one folder share nothing, and moving or removing
    a store means exactly these two paths (and SQLite's own ``-wal`` and ``-shm``).
    """
    store = store.expanduser().absolute()
    return store.with_name(f"{store.name}.d")


def check_base_url(url: str) -> str:
    """Return ``url`` without a slash at its end.

    A run remembers it: what cannot be one, or holds a secret, must not come so far (SECRET-1).

    Raises:
        InvalidInput: It is no http address, or holds a password (MN-0111).
    """
    if "@" in url:
        raise InvalidInput("the base URL holds a password", code="MN-0111", hint="give the key by --api-key-file")
    if not _is_http(url):
        raise InvalidInput(
            f"the base URL {url!r} is not an http or https address",
            code="MN-0111",
            hint="for example --base-url http://127.0.0.1:8080",
        )
    return url.rstrip("/")


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        plain = url.isprintable() and " " not in url and not parts.query and not parts.fragment
        return plain and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half an address, or a port that is none
        return False


def interpreter() -> str:
    """Return the absolute path of the Python that runs the guard and comes first in the ``PATH`` of commands.

    ``MNEMOSYNE_PYTHON`` wins. ``sys.executable`` is believed only if it is called like a Python: in a Rust program
    that embeds us it is that program, and starting it again would start the whole program, not an interpreter.

    Raises:
        InvalidInput: ``MNEMOSYNE_PYTHON`` names something that cannot be run (MN-0150).
        EnvironmentProblem: No interpreter was found (MN-0250).
    """
    named = os.environ.get("MNEMOSYNE_PYTHON")
    if named:
        found = shutil.which(os.path.expanduser(named))
        if found is None:
            raise InvalidInput(
                "MNEMOSYNE_PYTHON does not name a program",
                code="MN-0150",
                reason=f"{named!r} was not found or cannot be executed",
                hint="set MNEMOSYNE_PYTHON to the path of a Python 3.11 or newer, or unset it",
            )
        return os.path.abspath(found)
    for candidate in _candidates():
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return os.path.abspath(candidate)
    raise EnvironmentProblem(
        "no Python interpreter was found for child processes",
        code="MN-0250",
        reason="this program embeds Python, and no python3 lies beside its library or on PATH",
        hint="set MNEMOSYNE_PYTHON to the path of a Python 3.11 or newer",
    )


def _candidates() -> list[str]:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    candidates = []
    if sys.executable and _INTERPRETER_NAME.fullmatch(os.path.basename(sys.executable)):
        candidates.append(sys.executable)
    for folder in (sysconfig.get_config_var("BINDIR"), os.path.join(sys.base_exec_prefix, "bin")):
        if folder:
            candidates += [os.path.join(folder, name), os.path.join(folder, "python3")]
    candidates += [path for path in (shutil.which(name), shutil.which("python3")) if path]
    return candidates
