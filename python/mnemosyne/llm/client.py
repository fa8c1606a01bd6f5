"""One request to a Messages server and its answer, through the SDK with everything implicit switched off.

No retry of the SDK's (it obeys ``retry-after`` for weeks), no credential it might find by itself, no proxy for
loopback (``HTTP_PROXY`` would capture it), time limits that we chose, streaming always. The body is a plain dict, so
what is hashed before sending is what the server receives.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from pydantic import JsonValue

from mnemosyne.config.secrets import ApiKey, SecretsManager, key_in
from mnemosyne.config.settings import ANTHROPIC, check_base_url
from mnemosyne.errors import EnvironmentProblem, InvalidInput, MissingCredential
from mnemosyne.llm.failures import Failure
from mnemosyne.llm.reset import seconds_until_reset
from mnemosyne.llm.turns import StreamError, Turn, TurnError, cut, malformed, read_turn, stalled
from mnemosyne.models import Usage

if TYPE_CHECKING:
    import httpx2
    from anthropic import APIStatusError, AsyncAnthropic

__all__ = ["Client", "prefetch"]

_CONNECT_SECONDS = 10.0
FIRST_BYTE_SECONDS = 300.0
"""Before anything of the answer has come: a small local model can take minutes over a long prompt."""
BETWEEN_BYTES_SECONDS = 60.0
"""Once an answer has begun. Anthropic's servers ping every few seconds; a stream that falls silent is dead, and people
report that it stays so until somebody ends it."""
_DRAIN_SECONDS = 1.0
_MESSAGE_LENGTH = 500  # characters of a server's own words that an error quotes

_ENDED = frozenset({401, 403})
_ASKED_AGAIN = frozenset({408, 409})
_KINDS_OVERLOADED = frozenset({"overloaded_error", "api_error", "rate_limit_error", "timeout_error"})
_KINDS_ENDED = frozenset({"authentication_error", "permission_error"})
_SIGNS_OF_LENGTH = ("prompt is too long", "context limit", "context length", "context size", "context window")
"""What Anthropic's servers say, and what local ones say that speak the same API."""

_COUNT_SECONDS = 20.0
_COUNTED = ("model", "system", "messages", "tools", "tool_choice", "thinking", "output_config", "cache_control")
_OFFERS_NO_COUNT = frozenset({404, 405, 501})

_countless: set[str] = set()
"""Base URLs that do not count tokens: each is asked once in a process."""

_reached: set[str] = set()
"""Base URLs that have answered this process: before its first answer an unreachable server is a mistake in the
settings, which ends the run so that it can be corrected; afterwards it is an outage, which is waited for."""


def prefetch() -> None:
    """Start importing the SDK in a thread, so that its 0.75 s overlap with other work. Needs a running loop."""
    if "anthropic" not in sys.modules:
        future = asyncio.get_running_loop().run_in_executor(None, _load)
        # A missing SDK is reported by the first request, where somebody waits for it.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())


class Client:
    """The way to one server for one agent; the connection is opened by the first request.

    Args:
        config: ``base_url``, and ``api_key`` (text or ``SecretStr``) or ``profile`` with ``key_source``, its source;
            without a key it is looked for (``SecretsManager``). Other keys are left
            alone.
    """

    def __init__(self, config: Mapping[str, JsonValue]) -> None:
        named = config.get("base_url")
        if named is not None and not isinstance(named, str):
            raise InvalidInput(
                "base_url is not text", code="MN-0111", hint="for example base_url='http://127.0.0.1:8080'"
            )
        self._named_url = named or os.environ.get("ANTHROPIC_BASE_URL") or None
        self.base_url = check_base_url(self._named_url or ANTHROPIC)
        self._key: ApiKey | None = key_in(config)
        self._model = config.get("model")
        self._sdk: AsyncAnthropic | None = None

    def __repr__(self) -> str:
        return f"Client({self.base_url!r})"

    @property
    def is_anthropic(self) -> bool:
        """Whether it is Anthropic's own server, which knows more of the API than others do."""
        return self.base_url == ANTHROPIC

    async def send(self, body: dict[str, JsonValue], heard: Callable[[], None] = lambda: None) -> Turn:
        """Send ``body`` once and return the complete answer.

        Args:
            body: The request.
            heard: Called with each piece of the answer's content.

        Raises:
            TurnError: No complete answer; ``failure`` says in which way.
            MissingCredential: The server refuses the key (MN-0202), or there is none (MN-0201).
            EnvironmentProblem: The server cannot be reached and never answered this process (MN-0205).
        """
        sdk = await self._connected()
        import anthropic
        import httpx2

        arguments: dict[str, Any] = dict(body)
        try:
            stream = await sdk.messages.create(**arguments)
            _reached.add(self.base_url)
            async with stream:
                return await self._read(stream.response, str(body["model"]), heard)
        except anthropic.APIStatusError as error:
            _reached.add(self.base_url)
            self._raise_status(error)
        except StreamError as error:
            self._raise_kind(error.kind, error.message, usage=None)
        except anthropic.APIConnectionError as error:
            self._raise_connection(error.__cause__ or error)
        except httpx2.ReadTimeout as error:
            raise stalled(f"no byte of the answer came for {FIRST_BYTE_SECONDS:g} s") from error
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise cut(type(error).__name__) from error
        except anthropic.CredentialsError as error:
            self._raise_refused(type(error).__name__)
        except anthropic.AnthropicError as error:
            raise malformed(type(error).__name__) from error

    async def count_tokens(self, body: dict[str, JsonValue]) -> int | None:
        """Return how many tokens the input of ``body`` has; None where the server does not say.

        It costs nothing and asks no model. Whatever goes wrong is None: the caller has an estimate, and what is wrong
        with the server the next request will say.

        Raises:
            MissingCredential: There is no key (MN-0201).
        """
        if self.base_url in _countless:
            return None
        sdk = await self._connected()
        import anthropic

        asked: dict[str, Any] = {name: body[name] for name in _COUNTED if name in body}
        try:
            async with asyncio.timeout(_COUNT_SECONDS):
                answer = await sdk.messages.count_tokens(**asked)
        except anthropic.APIStatusError as error:
            if error.status_code in _OFFERS_NO_COUNT:
                _countless.add(self.base_url)
            return None
        except (anthropic.AnthropicError, TimeoutError, ValueError):
            return None
        counted: object = getattr(answer, "input_tokens", None)
        if not isinstance(counted, int) or counted < 1:
            _countless.add(self.base_url)  # it answers, but not this question
            return None
        return counted

    async def close(self) -> None:
        """Close the connections; call it on the loop that made the requests."""
        sdk, self._sdk = self._sdk, None
        if sdk is not None:
            await sdk.close()

    async def _read(self, response: httpx2.Response, model: str, heard: Callable[[], None]) -> Turn:
        import httpx2
        from anthropic import AsyncStream

        from mnemosyne.llm.stall import Watched

        kind = response.headers.get("content-type", "")
        if not kind.lower().startswith("text/event-stream"):
            # A captive portal or a proxy answers 200 with a page, and the SDK would hand it on as an empty stream.
            raise TurnError(
                "the server's answer is not a message stream",
                code="MN-0404",
                reason=f"{self.base_url} answered with content type {kind or 'none'!r}",
                hint="check that --base-url names a Messages-compatible server that can stream",
                failure=Failure.FATAL,
                usage=Usage(),
            )
        if isinstance(response.stream, httpx2.AsyncByteStream):
            response.stream = Watched(response.stream, BETWEEN_BYTES_SECONDS)
        events = AsyncStream.raw_events(response)
        turn = await read_turn(events, model, heard)
        # Only a stream read to its end leaves its connection usable; the turn itself is complete already.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_DRAIN_SECONDS):
                async for _ in events:
                    pass
        return turn

    async def find_key(self) -> None:
        """Look for the key, where the configuration has none.

        Raises:
            EnvironmentProblem: There is none (MN-0201), or a file with keys cannot be read (MN-0251, MN-0640).
        """
        if self._key is None:
            model = self._model if isinstance(self._model, str) else None
            self._key = await asyncio.to_thread(SecretsManager(None, self._named_url, model).resolve)

    async def _connected(self) -> AsyncAnthropic:
        if self._sdk is None:
            await self.find_key()
            self._sdk = await asyncio.to_thread(self._make)
        return self._sdk

    def _make(self) -> AsyncAnthropic:
        _load()
        import anthropic
        import httpx2

        timeout = httpx2.Timeout(FIRST_BYTE_SECONDS, connect=_CONNECT_SECONDS)
        direct = httpx2.AsyncClient(trust_env=False, timeout=timeout) if _is_loopback(self.base_url) else None
        assert self._key is not None
        profile = self._key.profile
        try:
            return anthropic.AsyncAnthropic(
                api_key=None if profile else self._key.get_secret_value(),
                profile=profile,
                base_url=self.base_url,
                max_retries=0,
                timeout=timeout,
                http_client=direct,
            )
        except anthropic.AnthropicError as error:  # the profile cannot be used
            self._raise_refused(type(error).__name__)

    def _raise_status(self, error: APIStatusError) -> NoReturn:
        status = error.status_code
        kind = error.type or ""
        if status in _ENDED or kind in _KINDS_ENDED:
            self._raise_refused(f"{status} {kind}".strip())
        said = self._quoted(error.api_message or "")
        reason = f"{status} {kind} {said}".strip()
        if status == 429 or status >= 500:
            seconds = seconds_until_reset(error.response.headers)
            limited = status == 429 and seconds is not None
            failure = Failure.WAIT_UNTIL if limited else Failure.OVERLOADED
            raise _unavailable(reason, failure, seconds, Usage()) from None
        if status in _ASKED_AGAIN:
            raise _unavailable(reason, Failure.CUT, None, Usage()) from None
        if status == 400 and _is_too_long(said):
            raise _too_long(reason) from None
        raise _rejected(reason) from None

    def _raise_kind(self, kind: str, message: str, *, usage: Usage | None) -> NoReturn:
        if kind in _KINDS_ENDED:
            self._raise_refused(kind)
        said = self._quoted(message)
        if kind in _KINDS_OVERLOADED or not kind.endswith("_error"):
            raise _unavailable(f"{kind} in the stream: {said}", Failure.OVERLOADED, None, usage) from None
        raise _rejected(f"{kind} in the stream: {said}") from None

    def _raise_refused(self, reason: str) -> NoReturn:
        # The server's own words are left out: some quote the key they refuse.
        source = self._key.source if self._key is not None else ""
        raise MissingCredential(
            "the server refused the API key",
            code="MN-0202",
            reason=f"{self.base_url} answered {reason} to {f'the key from {source}' if source else 'no key'}",
            hint="give another key there (what is kept: mnemosyne config set-key), then resume the run",
        ) from None

    def _raise_connection(self, error: BaseException) -> NoReturn:
        import httpx2

        name = type(error).__name__
        never_connected = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.UnsupportedProtocol)
        if never_connected and self.base_url not in _reached:
            raise EnvironmentProblem(
                f"the model's server at {self.base_url} does not answer",
                code="MN-0205",
                reason=f"{name}: {self._quoted(str(error))}",
                hint="start the server, then mnemosyne resume; or begin again with another --base-url",
            ) from error
        if never_connected:
            raise _unavailable(f"connection: {name}", Failure.UNREACHABLE, None, Usage()) from error
        # Where the connection stood, the request may have been worked on: what it cost is unknown.
        if isinstance(error, httpx2.ReadTimeout):
            raise stalled(f"no byte of the answer came for {FIRST_BYTE_SECONDS:g} s") from error
        raise _unavailable(f"connection: {name}", Failure.CUT, None, None) from error

    def _quoted(self, text: str) -> str:
        key = self._key.get_secret_value() if self._key is not None else ""
        words = text.split()
        if len(key) >= 8:
            # Not even a prefix may pass (SECRET-1), and servers like to quote a shortened key.
            words = ["[hidden]" if key[:8] in word or (len(word) > 3 and word in key) else word for word in words]
        return " ".join(words)[:_MESSAGE_LENGTH]


def _load() -> None:
    try:
        import anthropic  # noqa: F401
    except ImportError as error:
        raise EnvironmentProblem(
            "the anthropic package cannot be imported",
            code="MN-0210",
            reason=str(error),
            hint="pip install 'anthropic>=2.12,<3'",
        ) from error


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_too_long(said: str) -> bool:
    """Whether a 400 is about the length of the prompt; the API has no type of its own for it."""
    return any(sign in said.lower() for sign in _SIGNS_OF_LENGTH)


def _unavailable(reason: str, failure: Failure, retry_after: float | None, usage: Usage | None) -> TurnError:
    return TurnError(
        "the model cannot be reached at the moment",
        code="MN-0403",
        reason=reason,
        hint="the run goes on by itself when the server answers again",
        failure=failure,
        retry_after=retry_after,
        usage=usage,
    )


def _rejected(reason: str) -> TurnError:
    return TurnError(
        "the model's server rejected the request",
        code="MN-0408",
        reason=reason,
        hint="check --model and --base-url; the same request would be rejected again",
        failure=Failure.FATAL,
        usage=Usage(),
    )


def _too_long(reason: str) -> TurnError:
    return TurnError(
        "the conversation no longer fits into the model's context window",
        code="MN-0407",
        reason=reason,
        hint="split the task, or use a model with a larger window",
        failure=Failure.CONTEXT_OVERFLOW,
        usage=Usage(),
    )
