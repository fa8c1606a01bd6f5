"""A real Secret Service: gnome-keyring on a D-Bus session of its own, in a folder of its own: `make keychain`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

__all__ = ["SecretService", "missing"]

_SCRIPT = """
printf "$1" | gnome-keyring-daemon --unlock --components=secrets --foreground >&2 &
echo "$! $DBUS_SESSION_BUS_ADDRESS"
read -r _ || true
kill -CONT $!
kill $!
"""


def missing() -> str:
    """Say what is not installed, for a skip; empty where everything is."""
    names = [name for name in ("gnome-keyring-daemon", "dbus-run-session") if shutil.which(name) is None]
    return f"{' and '.join(names)} not installed: make keychain" if names else ""


class SecretService:
    """One session with a keychain that is unlocked.

    Attributes:
        address: Of its bus, for ``DBUS_SESSION_BUS_ADDRESS``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        environment = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}
        self._process = subprocess.Popen(
            ["dbus-run-session", "--", "sh", "-c", _SCRIPT, "sh", "a password"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            process_group=0,
        )
        assert self._process.stdout is not None
        pid, _, self.address = self._process.stdout.readline().strip().partition(" ")
        assert self.address, "there is no bus"
        self._daemon = int(pid)

    def stop_answering(self) -> None:
        """As a keychain that is locked, and waits for a person."""
        os.kill(self._daemon, signal.SIGSTOP)

    def answer_again(self) -> None:
        os.kill(self._daemon, signal.SIGCONT)

    def bytes_at_rest(self) -> bytes:
        """All that it keeps on disk."""
        return b"".join(path.read_bytes() for path in self._folder.rglob("*") if path.is_file())

    def close(self) -> None:
        self._process.communicate("\n", timeout=20)
