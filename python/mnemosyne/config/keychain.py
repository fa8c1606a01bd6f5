"""The keychain of the desktop (Secret Service over D-Bus: GNOME Keyring, KWallet, KeePassXC), through ``keyring``.

The backend is named and not searched for: what ``keyring`` finds by itself may store in plain text or ask on stdin.
Every question has a time limit, because a keychain that is locked waits for a person who may not be there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["KEYCHAIN", "KeychainSilent", "read", "remove", "write"]

KEYCHAIN = "the OS keychain"
_SERVICE = "mnemosyne"
SECONDS = 2.0

_Answer = TypeVar("_Answer")


class _Keyring(Protocol):
    """What is used of ``keyring.backends.SecretService``, which has no types."""

    def get_password(self, service: str, username: str) -> str | None: ...
    def set_password(self, service: str, username: str, password: str) -> None: ...
    def get_preferred_collection(self) -> Any: ...


class KeychainSilent(Exception):
    """There is no keychain, or it does not answer; the text says which."""


def read(server: str) -> str | None:
    """Return the key that is kept for a server, None where there is none.

    Raises:
        KeychainSilent: It cannot be asked.
    """
    return _ask(lambda keyring: keyring.get_password(_SERVICE, server))


def write(server: str, key: str) -> None:
    """Keep a key for a server, in the place of another.

    Raises:
        KeychainSilent: It cannot be asked, or refuses.
    """
    _ask(lambda keyring: keyring.set_password(_SERVICE, server, key))


def remove(server: str | None = None) -> bool:
    """Forget the key of a server, or None: of all; returns whether there was one.

    Raises:
        KeychainSilent: It cannot be asked, or refuses.
    """
    return _ask(lambda keyring: _remove(keyring, server))


def _remove(keyring: _Keyring, server: str | None) -> bool:
    about = {"service": _SERVICE} if server is None else {"service": _SERVICE, "username": server}
    found = False
    collection = keyring.get_preferred_collection()
    try:
        for item in list(collection.search_items(about)):
            item.delete()
            found = True
    finally:
        collection.connection.close()
    return found


def _ask(question: Callable[[_Keyring], _Answer]) -> _Answer:
    if not _has_bus():
        raise KeychainSilent("there is no D-Bus session")
    asked = _Question(question)
    asked.start()
    asked.join(SECONDS)
    if asked.is_alive() or isinstance(asked.error, TimeoutError):
        raise KeychainSilent(f"it did not answer within {SECONDS:g} s; it may be locked")
    if asked.error is not None:
        # Only its class: what a backend says may quote what it was given (SECRET-1).
        raise KeychainSilent(f"it cannot be used ({type(asked.error).__name__})") from None
    return asked.answer  # type: ignore[return-value]


class _Question(threading.Thread, Generic[_Answer]):
    """A question on a thread of its own, which is left behind where no answer comes."""

    def __init__(self, question: Callable[[_Keyring], _Answer]) -> None:
        super().__init__(name="keychain", daemon=True)
        self._question = question
        self.answer: _Answer | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            from keyring.backends import SecretService

            backend: type[_Keyring] = SecretService.Keyring
            self.answer = self._question(backend())
        except BaseException as error:  # whatever a backend raises is told by whoever asked
            self.error = error


def _has_bus() -> bool:
    # Asked before anything is imported: without a bus nobody should wait for the import.
    return bool(os.environ.get("DBUS_SESSION_BUS_ADDRESS"))
