"""What mnemosyne needs of a machine, asked one by one: each failing check says what to do about it.

Nothing is changed and nothing is sent: the store is not made, the network is asked only for a base URL that was named,
and of a key only the place is told where it would come from (SECRET-1).
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib import metadata, resources
from pathlib import Path
from urllib.parse import urlsplit

from mnemosyne.config.secrets import SecretsManager
from mnemosyne.config.settings import check_base_url
from mnemosyne.errors import MnemosyneError

__all__ = ["Check", "check_environment", "check_key", "check_sdk"]

_LEAST_DISK = 1_000_000_000
"""Bytes: trees of attempts are copies of the workspace, and a full disk stops every run."""
_LEAST_FILES = 1_024
"""Open files: each of 64 tasks has a tree, pipes and a connection."""
_LEAST_PROCESSES = 512
_OLD_PRICES = 180
"""Days after which list prices are worth a look."""
_CONNECT_SECONDS = 5.0
_GIT_SECONDS = 10.0
_NEEDED_SDK = (2, 12)
_NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "afs")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@dataclass(frozen=True)
class Check:
    """One question and its answer.

    Attributes:
        name: What was looked at.
        ok: False where mnemosyne cannot work like this.
        detail: What was found.
        fix: What to do where it is not ok.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""


def check_environment(store: Path, *, base_url: str | None = None, key_file: Path | None = None) -> list[Check]:
    """Ask everything.

    Args:
        store: The store that would be used; it need not exist.
        base_url: A server to connect to; without one the network is left alone.
        key_file: The file of ``--api-key-file``, if one would be given.
    """
    checks: list[Callable[[], Check]] = [
        _interpreter,
        _wheel,
        check_sdk,
        lambda: check_key(key_file, base_url),
        _models,
        _git,
        lambda: _store(store),
        lambda: _disk(store),
        _limits,
        _proxies,
    ]
    if base_url is not None:
        checks.append(lambda: _server(base_url))
    return [check() for check in checks]


def check_sdk() -> Check:
    """Say which version of the ``anthropic`` package is installed, without importing it."""
    fix = "pip install 'anthropic>=2.12,<3'"
    try:
        version = metadata.version("anthropic")
    except metadata.PackageNotFoundError:
        return Check("anthropic SDK", False, "it is not installed", fix)
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    return Check("anthropic SDK", _NEEDED_SDK <= numbers < (3,), f"version {version}", fix)


def check_key(file: Path | None = None, base_url: str | None = None) -> Check:
    """Say where the key comes from."""
    try:
        source = SecretsManager(file, base_url).resolve().source
    except MnemosyneError as problem:
        return Check("API key", False, problem.message, problem.hint)
    return Check("API key", True, f"from {source}" if source else "none is needed for a server of your own")


def _interpreter() -> Check:
    detail = f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    return Check("Python", sys.version_info >= (3, 11), detail, "install mnemosyne into Python 3.11 or newer")


def _wheel() -> Check:
    fix = "pip install --force-reinstall mnemosyne-orchestration"
    try:
        from mnemosyne import __version__, _core
    except ImportError as error:
        return Check("wheel", False, f"the Rust side cannot be loaded: {error}", fix)
    profile = "debug build, which is slow" if _core.debug_build else "release build"
    same = _core.__version__ == __version__
    detail = f"version {__version__}, {profile}" if same else f"Python is {__version__}, Rust is {_core.__version__}"
    return Check("wheel", same, detail, fix)


def _models() -> Check:
    known = json.loads(resources.files("mnemosyne.llm").joinpath("models.json").read_text(encoding="utf-8"))
    age = (date.today() - date.fromisoformat(known["date"])).days
    models = ", ".join(sorted(set(known["roles"].values())))
    old = f"; the prices are {age} days old, so look at the server's own" if age > _OLD_PRICES else ""
    return Check("models", True, f"{models}; prices of {known['date']}{old}")


def _git() -> Check:
    fix = "install git 2.39 or newer, and see that it is on the PATH"
    program = shutil.which("git")
    if program is None:
        return Check("git", False, "it was not found", fix)
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Check("git", False, str(error), fix)
    found = re.search(r"(\d+)\.(\d+)[\d.]*", said.stdout)
    recent = found is not None and (int(found[1]), int(found[2])) >= (2, 39)
    return Check("git", recent, f"version {found[0]}" if found else said.stdout.strip(), fix)


def _store(store: Path) -> Check:
    folder = _nearest(store)
    fix = "give permission, or name another file with --store or MNEMOSYNE_STORE"
    kind = _file_system(folder)
    writable = os.access(store if store.exists() else folder, os.W_OK) and (not store.exists() or store.is_file())
    detail = f"{store}, {'there' if store.exists() else 'made when it is first needed'}, on {kind}"
    if not writable:
        return Check("store", False, f"{store} cannot be written", fix)
    if kind in _NETWORK_FILE_SYSTEMS:
        return Check(
            "store", False, detail, "name a file on a local disk: locks and syncs of network disks do not hold"
        )
    return Check("store", True, detail)


def _disk(store: Path) -> Check:
    free = shutil.disk_usage(_nearest(store)).free
    return Check("disk", free >= _LEAST_DISK, f"{free / 1e9:.1f} GB free", "make room: at least 1 GB beside the store")


def _limits() -> Check:
    files, processes = (resource.getrlimit(name)[0] for name in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
    enough = _is_enough(files, _LEAST_FILES) and _is_enough(processes, _LEAST_PROCESSES)
    said = [f"{'no limit' if limit == resource.RLIM_INFINITY else f'{limit:,}'}" for limit in (files, processes)]
    fix = f"ulimit -n {_LEAST_FILES}; ulimit -u {_LEAST_PROCESSES}"
    return Check("limits", enough, f"open files: {said[0]}, processes: {said[1]}", fix)


def _is_enough(limit: int, least: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= least


def _proxies() -> Check:
    # Their names only: a proxy's address may hold a password.
    named = [name for name in _PROXIES if os.environ.get(name) or os.environ.get(name.lower())]
    return Check("proxies", True, f"set: {', '.join(named)}" if named else "none is set")


def _server(url: str) -> Check:
    try:
        parts = urlsplit(check_base_url(url))
    except MnemosyneError as problem:
        return Check("server", False, problem.message, problem.hint)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_SECONDS):
            return Check("server", True, f"{host}:{port} answers")
    except OSError as error:
        fix = "start the server, or check the address, the network and the proxies"
        return Check("server", False, f"{host}:{port} does not answer: {error.strerror or error}", fix)


def _nearest(path: Path) -> Path:
    """The folder in which ``path`` is, or would be made."""
    return next(folder for folder in path.absolute().parents if folder.is_dir())


def _file_system(folder: Path) -> str:
    """The type of the file system that holds ``folder``, by the longest mount point above it."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return "an unknown file system"
    folder = folder.resolve()
    above = [(point, kind) for point, kind in mounts if folder.is_relative_to(point.replace("\\040", " "))]
    return max(above, key=lambda mount: len(mount[0]), default=("", "an unknown file system"))[1]
