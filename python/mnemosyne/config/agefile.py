"""Keys in a file that is encrypted with age, where there is no keychain: on servers, in containers, over ssh.

Two files of mode 0600 in a folder of mode 0700: the identity opens the other one. Who can read both has the keys, so
this keeps them out of backups, of searches and of pictures of one file, and not from the user that owns them. Both are
age's own formats: ``age -d -i identity.txt secrets.age`` opens them.

Every write is a new file that takes the other's name, so a power cut leaves the old one or the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnemosyne.errors import EnvironmentProblem, MnemosyneError

if TYPE_CHECKING:
    from pyrage.x25519 import Identity

__all__ = ["AgeFile", "read_private"]

_LARGEST = 1_000_000
"""Bytes; thousands of keys are smaller."""


def read_private(file: Path, most: int, refuse: Callable[[str], MnemosyneError]) -> bytes:
    """Return what is in a file that nobody else can reach.

    Args:
        file: The file.
        most: Bytes that it may hold: a mistyped path must not be read into memory.
        refuse: Makes the error of a file that cannot be used, from the reason.

    Raises:
        EnvironmentProblem: Others could read it (MN-0251).
        MnemosyneError: What ``refuse`` makes.
    """
    try:
        # Opened once and judged by descriptor: between a check of the path and its opening the file could be swapped.
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise refuse(error.strerror or "it cannot be opened") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise refuse("it is not a regular file")
        if status.st_mode & 0o077:
            raise EnvironmentProblem(
                f"the key file {file} can be read by others",
                code="MN-0251",
                reason=f"its mode is {stat.S_IMODE(status.st_mode):04o}",
                hint=f"chmod 600 {file}",
            )
        content = os.read(descriptor, most + 1)
    finally:
        os.close(descriptor)
    if len(content) > most:
        raise refuse(f"it holds more than {most:,} bytes")
    return content


class AgeFile:
    """The keys of a folder, by server.

    Args:
        folder: Where the two files are, or will be.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "secrets.age"
        self.identity = folder / "identity.txt"

    @property
    def exists(self) -> bool:
        """Whether keys were kept here, or ``prepare`` was called."""
        return self.path.exists() or self.identity.exists()

    def prepare(self) -> None:
        """Make the identity, if there is none.

        Raises:
            EnvironmentProblem: It cannot be written (MN-0641).
        """
        with self._held():
            self._own_identity()

    def read(self) -> dict[str, str]:
        """Return the keys; none where there is no file.

        Raises:
            EnvironmentProblem: Others could read one of the files (MN-0251), or they cannot be opened (MN-0640).
        """
        if not self.path.exists():
            return {}
        import pyrage

        identity, sealed = self._read_identity(), read_private(self.path, _LARGEST, self._broken)
        try:
            content = json.loads(pyrage.decrypt(sealed, [identity]))
            if not isinstance(content, dict) or not all(isinstance(key, str) for key in content.values()):
                raise ValueError
        except (pyrage.DecryptError, ValueError):
            raise self._broken(f"{self.identity.name} does not open it, or it is damaged") from None
        return content

    def change(self, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
        """Keep what ``change`` makes of the keys.

        Raises:
            EnvironmentProblem: A file can be read by others (MN-0251), cannot be opened (MN-0640) or written (MN-0641).
        """
        with self._held():
            self._write(change(self.read()), [self._own_identity()])

    def rotate(self) -> None:
        """Encrypt the keys anew; the old identity opens nothing any more.

        In between, the file is open to both: wherever this is cut off, the identity that is there opens it.

        Raises:
            EnvironmentProblem: A file can be read by others (MN-0251), cannot be opened (MN-0640) or written (MN-0641).
        """
        from pyrage import x25519

        with self._held():
            keys, old, new = self.read(), self._own_identity(), x25519.Identity.generate()
            self._write(keys, [old, new])
            self._replace(self.identity, f"{new}\n".encode())
            self._write(keys, [new])

    def remove(self) -> bool:
        """Remove both files; returns whether there was one.

        Raises:
            EnvironmentProblem: They cannot be removed (MN-0641).
        """
        found = self.exists
        try:
            for path in (self.path, self.identity):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        return found

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Keep other processes from writing, from a read to the write that follows from it."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _own_identity(self) -> Identity:
        from pyrage import x25519

        if not self.identity.exists():
            if self.path.exists():  # with another one it would never be opened again
                raise self._broken(f"{self.identity.name}, which opens it, is gone")
            self._replace(self.identity, f"{x25519.Identity.generate()}\n".encode())
        return self._read_identity()

    def _read_identity(self) -> Identity:
        from pyrage import IdentityError, x25519

        try:
            return x25519.Identity.from_str(read_private(self.identity, _LARGEST, self._broken).decode().strip())
        except (IdentityError, ValueError):
            raise self._broken(f"{self.identity.name} holds no identity of age") from None

    def _write(self, keys: Mapping[str, str], identities: Sequence[Identity]) -> None:
        import pyrage

        recipients = [identity.to_public() for identity in identities]
        self._replace(self.path, pyrage.encrypt(json.dumps(dict(keys)).encode(), recipients))

    def _replace(self, path: Path, content: bytes) -> None:
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            with open(beside, "wb", opener=_private) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise self._unwritable(error) from error

    def _broken(self, reason: str) -> EnvironmentProblem:
        return EnvironmentProblem(
            f"the secrets file {self.path} cannot be opened",
            code="MN-0640",
            reason=reason,
            hint="bring it back from a backup, or begin anew: mnemosyne secrets clear, then mnemosyne secrets init",
        )

    def _unwritable(self, error: OSError) -> EnvironmentProblem:
        return EnvironmentProblem(
            f"the secrets file {self.path} cannot be written",
            code="MN-0641",
            reason=error.strerror or str(error),
            hint="make room or give permission, or give the key by ANTHROPIC_API_KEY or --api-key-file",
        )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
