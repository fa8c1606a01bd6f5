"""One answer of the model, put together from the events of its stream.

A turn counts only with ``stop_reason`` and ``message_stop`` (TRUTH-1): a stream that simply ends looks like a short
answer to the SDK, even in the middle of a tool's input. So the events are read before the SDK filters them, a chunk
that cannot be decoded breaks the turn instead of vanishing, and blocks are kept exactly as they came: thinking must
go back unchanged, and a kind of block we do not know must survive.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeGuard

from pydantic import JsonValue

from mnemosyne.errors import ModelError
from mnemosyne.llm import prices
from mnemosyne.llm.failures import RULES, Failure
from mnemosyne.models import Usage

__all__ = ["ServerEvent", "StreamError", "Turn", "TurnError", "cut", "malformed", "read_turn", "stalled"]

JsonObject = dict[str, JsonValue]

_COUNTS = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cache_read_input_tokens": "cache_read_tokens",
    "cache_creation_input_tokens": "cache_write_tokens",
}


class TurnError(ModelError):
    """One try that gave no turn.

    Attributes:
        failure: How it failed.
        usage: What it is known to have spent; None where nobody can know, so the reservation stays charged.
        detail: What the event of the failed step says beside that.
    """

    failure: Failure

    def __init__(
        self,
        message: str,
        *,
        code: str,
        reason: str = "",
        hint: str = "",
        failure: Failure,
        retry_after: float | None = None,
        usage: Usage | None = None,
    ) -> None:
        fatal = RULES[failure].tries == 1
        super().__init__(
            message, code=code, reason=reason, hint=hint, fatal=fatal, retry_after=retry_after, failure=failure
        )
        self.usage = usage
        self.detail: JsonObject = {"class": failure}


class StreamError(Exception):
    """The server sent an ``error`` event in the middle of an answer that had begun with status 200."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind)
        self.kind = kind
        self.message = message


class ServerEvent(Protocol):
    """A server-sent event, not yet decoded."""

    @property
    def event(self) -> str | None: ...
    @property
    def data(self) -> str: ...


@dataclass(frozen=True)
class Turn:
    """A complete answer."""

    content: list[JsonObject]
    """The blocks as they came, ready to be sent back; only empty text is left out, which the API refuses."""
    stop_reason: str
    usage: Usage
    identifier: str = ""
    """The server's id of the message, for support requests."""
    stop_details: JsonValue = None

    @property
    def text(self) -> str:
        """The text of the answer, without thinking."""
        return "".join(str(block.get("text", "")) for block in self.content if block.get("type") == "text")

    @property
    def tool_uses(self) -> list[JsonObject]:
        """The tool calls in the answer; they may be run only if ``stop_reason`` is ``tool_use``."""
        return [block for block in self.content if block.get("type") == "tool_use"]

    def to_json(self) -> JsonObject:
        """Return the form that the journal keeps."""
        return {
            "id": self.identifier,
            "content": list(self.content),
            "stop_reason": self.stop_reason,
            "stop_details": self.stop_details,
            "usage": self.usage.model_dump(mode="json"),
        }

    @classmethod
    def from_json(cls, value: JsonValue) -> Turn:
        """Read what ``to_json`` wrote."""
        if not _is_object(value) or not isinstance(content := value.get("content"), list):
            raise ValueError("not the journal's form of a turn")
        return cls(
            content=[block for block in content if _is_object(block)],
            stop_reason=str(value["stop_reason"]),
            usage=Usage.model_validate(value["usage"]),
            identifier=str(value.get("id", "")),
            stop_details=value.get("stop_details"),
        )


@dataclass
class _Block:
    value: JsonObject
    partial_json: list[str] = field(default_factory=list)
    closed: bool = False


@dataclass
class _Assembly:
    blocks: dict[int, _Block] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    identifier: str = ""
    stop_reason: str | None = None
    stop_details: JsonValue = None
    stopped: bool = False

    def take(self, event: JsonObject) -> None:
        match event.get("type"):
            case "message_start":
                message = _object(event, "message")
                self.identifier = str(message.get("id", ""))
                self._count(message.get("usage"))
            case "content_block_start":
                self.blocks[_index(event)] = _Block(dict(_object(event, "content_block")))
            case "content_block_delta":
                _extend(self.blocks[_index(event)], _object(event, "delta"))
            case "content_block_stop":
                _close(self.blocks[_index(event)])
            case "message_delta":
                delta = _object(event, "delta")
                if isinstance(reason := delta.get("stop_reason"), str):
                    self.stop_reason = reason
                self.stop_details = delta.get("stop_details") or self.stop_details
                self._count(event.get("usage"))
            case "message_stop":
                self.stopped = True
            case _:
                pass  # the API may add kinds of events; ping is one

    def _count(self, usage: JsonValue) -> None:
        # The counts are cumulative, so a later event replaces an earlier one; null means "not said here".
        if _is_object(usage):
            self.counts.update(
                {ours: value for theirs, ours in _COUNTS.items() if isinstance(value := usage.get(theirs), int)}
            )

    def finish(self, model: str) -> Turn:
        if not self.stopped or self.stop_reason is None:
            raise cut("the stream ended before the answer was complete")
        if any(not block.closed for block in self.blocks.values()):
            raise cut("the answer ended inside a content block")
        content = [self.blocks[index].value for index in sorted(self.blocks)]
        content = [block for block in content if block.get("type") != "text" or block.get("text")]
        usage = Usage.model_validate({**self.counts, "turns": 1})
        usage.cost_usd = prices.cost_usd(model, usage)
        return Turn(_encodable(content), self.stop_reason, usage, self.identifier, self.stop_details)


async def read_turn(events: AsyncIterable[ServerEvent], model: str, heard: Callable[[], None] = lambda: None) -> Turn:
    """Read a stream to its ``message_stop``.

    Args:
        events: As they come.
        model: For the price.
        heard: Called with each piece of the content, and not for a ping, which says that the server lives and no more.
            Until the first a server may still say that it is overloaded.

    Raises:
        TurnError: The stream was cut or cannot be understood; asking again may help.
        StreamError: The server said so in an ``error`` event.
    """
    assembly = _Assembly()
    try:
        async for event in events:
            if not event.data:
                continue
            decoded = json.loads(event.data)
            if not _is_object(decoded):
                raise malformed("an event is not a JSON object")
            if event.event == "error" or decoded.get("type") == "error":
                error = decoded.get("error")
                details = error if _is_object(error) else {}
                raise StreamError(str(details.get("type", "")), str(details.get("message", "")))
            assembly.take(decoded)
            if assembly.blocks and decoded.get("type") != "ping":
                heard()
            if assembly.stopped:
                break
    except (ValueError, KeyError, TypeError) as error:
        raise malformed(f"an event cannot be understood ({type(error).__name__})") from error
    return assembly.finish(model)


def cut(reason: str) -> TurnError:
    """Return the error for an answer that came only in part; what it cost is unknown."""
    return _broken("the model's answer broke off", "MN-0404", Failure.CUT, reason)


def malformed(reason: str) -> TurnError:
    """Return the error for an answer that cannot be understood; what it cost is unknown."""
    return _broken("the model's answer cannot be understood", "MN-0404", Failure.MALFORMED, reason)


def stalled(reason: str) -> TurnError:
    """Return the error for an answer that stopped coming; what it cost is unknown."""
    return _broken("the model's answer stopped coming", "MN-0413", Failure.STALLED, reason)


def _broken(message: str, code: str, failure: Failure, reason: str) -> TurnError:
    hint = "if it happens again, look at the proxy or server between here and the model"
    return TurnError(message, code=code, reason=reason, hint=hint, failure=failure)


def _extend(block: _Block, delta: JsonObject) -> None:
    match delta.get("type"):
        case "text_delta":
            _append(block.value, "text", delta["text"])
        case "thinking_delta":
            _append(block.value, "thinking", delta["thinking"])
        case "signature_delta":
            block.value["signature"] = delta["signature"]
        case "input_json_delta":
            block.partial_json.append(str(delta["partial_json"]))
        case "citations_delta":
            citations = block.value.get("citations")
            block.value["citations"] = [*(citations if isinstance(citations, list) else []), delta["citation"]]
        case _:
            pass


def _append(block: JsonObject, key: str, piece: JsonValue) -> None:
    if not isinstance(piece, str):
        raise TypeError(f"{key} is not text")
    block[key] = str(block.get(key) or "") + piece


def _close(block: _Block) -> None:
    text = "".join(block.partial_json)
    if text:
        block.value["input"] = json.loads(text)
    block.closed = True


def _index(event: JsonObject) -> int:
    index = event["index"]
    if not isinstance(index, int):
        raise TypeError("index is not a number")
    return index


def _object(event: JsonObject, key: str) -> JsonObject:
    value = event[key]
    if not _is_object(value):
        raise TypeError(f"{key} is not an object")
    return value


def _is_object(value: JsonValue) -> TypeGuard[JsonObject]:
    return isinstance(value, dict)


def _encodable(content: list[JsonObject]) -> list[JsonObject]:
    # JSON can carry half of a surrogate pair, UTF-8 cannot: sent back as it is, the next request could not be written.
    text = json.dumps(content, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        cleaned: list[JsonObject] = json.loads(text.encode("utf-8", "replace"))
        return cleaned
    return content
