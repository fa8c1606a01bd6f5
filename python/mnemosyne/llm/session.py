"""A conversation with Claude: ``connect``, ``query``, ``receive_response``, ``disconnect``.

These are the verbs of the official agent SDK, so that it can stand behind the same interface later. What is ours is
the journal. Everything that enters the conversation is recorded before it is used: the opening (model, system prompt,
tools, first prompt) and later prompts as steps ``prompt``, answers as turns, results of tools as tools. A resumed
claim reads all of it back and computes none of it again, so its next request is byte for byte the one that the
interrupted claim would have sent, even if a prompt, a tool's description or a file has changed meanwhile.

A conversation that no longer fits into the model's context window is shortened (``compaction``), and
what was done is a step ``compaction`` of the journal: a resumed claim follows it, whatever it would decide itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from pydantic import JsonValue

from mnemosyne.errors import ModelError, ModelRefused
from mnemosyne.llm import compaction, prices
from mnemosyne.llm.client import Client, prefetch
from mnemosyne.llm.failures import Failure
from mnemosyne.llm.retry import Journal, RetryPolicy, ask
from mnemosyne.llm.transcript import call_of
from mnemosyne.llm.turns import JsonObject, Turn
from mnemosyne.models import Usage

__all__ = [
    "AssistantMessage",
    "ClaudeSession",
    "Prompt",
    "ResultMessage",
    "SessionOptions",
    "ToolMessage",
    "ToolOutcome",
    "Tools",
]

_TOO_LONG, _REJECTED = "MN-0407", "MN-0408"
_TOKENS_PER_BYTE = 0.5
"""Until the model's own count of a first request is known: too many tokens for most texts, which is the safe side."""

Prompt = str | Callable[[], Awaitable[str]]
"""A text, or a function that makes it; the function is not called where the journal has the text already."""


class ToolOutcome(Protocol):
    """What a tool gave; an error is for the model to read, not for us to raise."""

    @property
    def content(self) -> str: ...
    @property
    def is_error(self) -> bool: ...


class Tools(Protocol):
    """The tools of a session."""

    def definitions(self) -> list[JsonObject]: ...
    async def run(self, name: str, input: JsonObject) -> ToolOutcome: ...
    async def describe_interrupted(self, name: str, input: JsonObject) -> str: ...


@dataclass(frozen=True)
class SessionOptions:
    """What a session is opened with."""

    model: str
    system: str
    tools: Tools | None = None
    output_schema: Callable[[], Awaitable[JsonObject]] | None = None
    """Makes the JSON schema that the server holds the text of the answer to; not called on a replay."""
    max_turns: int = 40
    max_tokens: int | None = None
    """Longest answer in tokens; None: what the data file says for the model."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    progress: Callable[[str], None] = lambda message: None


@dataclass(frozen=True)
class AssistantMessage:
    """The model answered."""

    turn: Turn


@dataclass(frozen=True)
class ToolMessage:
    """A tool was run, or found interrupted, and this is what the model will read."""

    tool_use_id: str
    name: str
    content: str
    is_error: bool


@dataclass(frozen=True)
class ResultMessage:
    """The last message of a response.

    Attributes:
        is_error: The turn limit was used up, so there is no final answer (MN-0406).
        turns: Turns of the session so far, replayed ones included.
        usage: Tokens and money of these turns.
    """

    text: str
    is_error: bool
    turns: int
    usage: Usage


class ClaudeSession:
    """One conversation. Not for two tasks at once."""

    def __init__(self, client: Client, journal: Journal, options: SessionOptions) -> None:
        self._client = client
        self._journal = journal
        self._options = options
        self._body: JsonObject = {}
        self._messages: list[JsonValue] = []
        self._said: list[str] = []
        """What we said, word for word: never shortened."""
        self._size = 0
        """Bytes of the request."""
        self._tokens_per_byte = _TOKENS_PER_BYTE
        self._turns = 0
        self._usage = Usage()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.disconnect()

    async def connect(self) -> None:
        """Begin loading what the first request needs; nothing is sent."""
        prefetch()

    async def disconnect(self) -> None:
        """Forget the conversation. The client is its owner's to close."""
        self._body, self._messages = {}, []

    async def query(self, prompt: Prompt) -> None:
        """Say something; the answer comes from ``receive_response``."""

        async def entry() -> tuple[JsonValue, Usage | None]:
            text = prompt if isinstance(prompt, str) else await prompt()
            message: JsonObject = {"role": "user", "content": _encodable(text)}
            return (message if self._body else {**await self._opening(), "messages": [message]}), None

        recorded = await self._journal.journaled("prompt", kind="step", input=None, function=entry)
        if not isinstance(recorded, dict):
            raise _unreadable_journal()
        if self._body:
            self._append(recorded)
        else:
            opening = recorded.get("messages")
            if not isinstance(opening, list):
                raise _unreadable_journal()
            self._body, self._messages = recorded, list(opening)
            self._size = compaction.size([self._body])
        self._said += [str(message["content"]) for message in self._messages[-1:] if isinstance(message, dict)]

    async def receive_response(self) -> AsyncIterator[AssistantMessage | ToolMessage | ResultMessage]:
        """Run the conversation until the model has finished; the last message is a ``ResultMessage``.

        Raises:
            ModelError: See ``mnemosyne.llm.retry.ask``; a refusal (MN-0402), an answer that hit its length limit
                (MN-0405), a conversation that could not be shortened enough for the context window (MN-0407), a reason
                to stop that we do not know (MN-0404).
        """
        while self._turns < self._options.max_turns:
            turn = await self._next_turn()
            if turn.content:
                self._append({"role": "assistant", "content": list(turn.content)})
            yield AssistantMessage(turn)
            match turn.stop_reason:
                case "end_turn" | "stop_sequence":
                    yield ResultMessage(turn.text, False, self._turns, self._usage)
                    return
                case "tool_use":
                    results: list[JsonValue] = []
                    for block in self._calls(turn):
                        message = await self._run_tool(block)
                        results.append(_tool_result(message))
                        yield message
                    self._append({"role": "user", "content": results})
                case "pause_turn":
                    pass  # the server paused a long turn and continues it when it is sent back as it is
                case _:
                    raise _stopped(turn)
        yield ResultMessage("", True, self._turns, self._usage)

    async def _next_turn(self) -> Turn:
        """Ask for a turn; where the conversation does not fit, shorten it and ask again.

        At most twice: results are left out, then there is a summary, then nothing but what we said.
        """
        shortened = 0
        while True:
            request = self._request()
            try:
                if not await self._is_known_not_to_fit(request, shortened):
                    return await self._asked(request)
            except ModelError as error:
                # A server may also refuse what was left out of a conversation; a summary has nothing to refuse.
                is_about_it = error.code == _TOO_LONG or (error.code == _REJECTED and shortened > 0)
                if not is_about_it or not compaction.has_answers(self._messages):
                    raise
            await self._shorten(request, summary=shortened > 0)
            shortened += 1

    async def _asked(self, request: JsonObject) -> Turn:
        turn = await ask(self._client, self._journal, request, self._options.retry)
        self._turns += 1
        self._usage = self._usage + turn.usage
        read = turn.usage.input_tokens + turn.usage.cache_read_tokens + turn.usage.cache_write_tokens
        if read:
            self._tokens_per_byte = read / self._size
        if turn.stop_reason == "model_context_window_exceeded":
            raise _stopped(turn)
        return turn

    async def _is_known_not_to_fit(self, request: JsonObject, shortened: int) -> bool:
        """What an earlier claim did decides; else the size, once: it is an estimate, and the server knows better."""
        if await self._journal.recorded("turn", input=request):
            return False
        if await self._journal.recorded("compaction", input=request):
            return True
        window = prices.context_window(str(self._body["model"]))
        if window is None or shortened or not compaction.has_answers(self._messages):
            return False
        return self._size * self._tokens_per_byte + self._max_tokens > window

    async def _shorten(self, request: JsonObject, *, summary: bool) -> None:
        self._options.progress("the conversation is shortened to fit the model's context window")
        room = self._room()

        async def shorten() -> tuple[JsonValue, Usage | None]:
            recipe = None if summary else compaction.leave_out(self._messages, room)
            return recipe or await self._sum_up(room), None

        recipe = await self._journal.journaled("compaction", kind="step", input=request, function=shorten)
        if not isinstance(recipe, dict):
            raise _unreadable_journal()
        self._size -= compaction.size(self._messages)
        self._messages = compaction.follow(recipe, self._messages, self._said)
        self._size += compaction.size(self._messages)
        if "usage" in recipe:
            self._usage = self._usage + Usage.model_validate(recipe["usage"])

    async def _sum_up(self, room: int) -> compaction.Recipe:
        prompt = compaction.summary_prompt(self._messages, room)
        kept = ("model", "max_tokens", "stream", "cache_control")
        body = {key: self._body[key] for key in kept if key in self._body}
        body |= {"system": compaction.SUMMARIZER, "messages": [{"role": "user", "content": prompt}]}
        turn = await ask(self._client, self._journal, body, self._options.retry)
        if turn.stop_reason != "end_turn" or not turn.text.strip():
            raise ModelError(
                "the conversation no longer fits into the model's context window, and could not be summed up",
                code=_TOO_LONG,
                reason=f"asked for a summary, the model stopped with {turn.stop_reason!r}",
                hint="split the task, or use a model with a larger window",
                fatal=True,
            )
        return compaction.summed_up(self._messages, turn.text, turn.usage.model_dump(mode="json"), room // 2)

    def _room(self) -> int:
        """Bytes that messages may take after they were shortened: what we said, and half of what fits beside it."""
        ours = sum(len(text.encode("utf-8")) for text in self._said)
        fits = compaction.size(self._messages)
        window = prices.context_window(str(self._body["model"]))
        if window is not None:
            fits = min(fits, int((window - self._max_tokens) / self._tokens_per_byte))
        return ours + max(fits - ours, 0) // 2

    def _append(self, message: JsonObject) -> None:
        self._messages.append(message)
        self._size += compaction.size([message])

    @property
    def _max_tokens(self) -> int:
        longest = self._body["max_tokens"]
        assert isinstance(longest, int)
        return longest

    async def _opening(self) -> JsonObject:
        options = self._options
        body: JsonObject = {
            "model": options.model,
            "max_tokens": options.max_tokens or prices.max_tokens(options.model),
            "system": options.system,
            "stream": True,
        }
        if options.tools is not None:
            body["tools"] = list(options.tools.definitions())
        if options.output_schema is not None:
            body["output_config"] = {"format": {"type": "json_schema", "schema": await options.output_schema()}}
        if self._client.is_anthropic:
            # Each turn of a tool loop sends the whole conversation again; a cache read costs a twentieth. Other servers
            # may refuse a field they do not know.
            body["cache_control"] = {"type": "ephemeral"}
        return body

    def _request(self) -> JsonObject:
        if not self._body:
            raise RuntimeError("receive_response() before query()")
        return {**self._body, "messages": list(self._messages)}

    def _calls(self, turn: Turn) -> list[JsonObject]:
        if self._options.tools is None or not turn.tool_uses:
            raise ModelError(
                "the model asked for a tool that it was not given",
                code="MN-0404",
                reason="stop_reason is tool_use, but there is no tool call that could be run",
                hint="use a model and a server that support tools",
                fatal=True,
            )
        return turn.tool_uses

    async def _run_tool(self, block: JsonObject) -> ToolMessage:
        tools = self._options.tools
        assert tools is not None
        identifier, name, given = str(block.get("id", "")), str(block.get("name", "")), block.get("input")
        self._options.progress(f"{name} {_subject(given)}".strip())

        async def run() -> tuple[JsonValue, Usage | None]:
            if not isinstance(given, dict):
                return {"content": "the input of a tool must be an object", "is_error": True}, None
            outcome = await tools.run(name, given)
            return {"content": _encodable(outcome.content), "is_error": outcome.is_error}, None

        async def interrupted() -> JsonValue:
            described = await tools.describe_interrupted(name, given if isinstance(given, dict) else {})
            return {"content": _encodable(described), "is_error": True}

        recorded = await self._journal.journaled(
            f"tool:{name[:64]}",
            kind="tool",
            input=call_of(block),
            function=run,
            interrupted=interrupted,
        )
        if not isinstance(recorded, dict):
            raise _unreadable_journal()
        return ToolMessage(identifier, name, str(recorded.get("content", "")), recorded.get("is_error") is True)


def _encodable(text: str) -> str:
    # A file name can hold bytes that are not UTF-8; neither a request nor the journal can.
    return text.encode("utf-8", "replace").decode("utf-8")


def _subject(given: JsonValue) -> str:
    if not isinstance(given, dict):
        return ""
    for key in ("path", "command", "pattern"):
        if isinstance(value := given.get(key), str):
            return value.splitlines()[0][:80] if value else ""
    return ""


def _tool_result(message: ToolMessage) -> JsonObject:
    block: JsonObject = {
        "type": "tool_result",
        "tool_use_id": message.tool_use_id,
        "content": message.content or "(no output)",
    }
    if message.is_error:
        block["is_error"] = True
    return block


def _stopped(turn: Turn) -> ModelError:
    said = turn.text.strip()[:2000]
    match turn.stop_reason:
        case "refusal":
            return ModelRefused(
                "the model declined the request", fatal=True, failure=Failure.REFUSAL,
                reason=_explanation(turn.stop_details) or said or "it gave no reason",
                hint="rephrase the prompt, or use another model",
            )  # fmt: skip
        case "max_tokens":
            return ModelError(
                "the model's answer hit its length limit", code="MN-0405", failure=Failure.MAX_TOKENS,
                reason=f"it used {turn.usage.output_tokens} output tokens and was not finished", fatal=True,
                hint="ask for less in one step, or use a model with a longer answer",
            )  # fmt: skip
        case "model_context_window_exceeded":
            return ModelError(
                "the conversation no longer fits into the model's context window", code="MN-0407", fatal=True,
                failure=Failure.CONTEXT_OVERFLOW,
                hint="split the task, or use a model with a larger window",
            )  # fmt: skip
        case other:
            return ModelError(
                "the model stopped for a reason this version does not know", code="MN-0404",
                reason=f"stop_reason is {other!r}", fatal=True, failure=Failure.MALFORMED, hint="upgrade mnemosyne",
            )  # fmt: skip


def _explanation(details: JsonValue) -> str:
    # A classifier that declines says why here; what there is of an answer is only its beginning.
    found = details.get("explanation") or details.get("category") if isinstance(details, dict) else None
    return found[:2000] if isinstance(found, str) else ""


def _unreadable_journal() -> ModelError:
    return ModelError(
        "the journal of this attempt cannot be read", code="MN-0409", fatal=True,
        reason="a recorded step does not have the form this version writes",
        hint="resume the run with the version that started it",
    )  # fmt: skip
