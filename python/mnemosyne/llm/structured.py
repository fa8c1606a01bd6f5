"""A pydantic model out of a conversation: the server is given the schema, and we check the answer ourselves.

The check is needed: servers hold an answer to types and keys only (ranges and lengths travel as text), and others than
Anthropic's may ignore the schema altogether. Never by a forced tool and never by prefill, which current models refuse.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError

from mnemosyne.errors import ModelError
from mnemosyne.llm.client import Client
from mnemosyne.llm.failures import Failure
from mnemosyne.llm.retry import Journal, RetryPolicy
from mnemosyne.llm.session import ClaudeSession, Prompt, ResultMessage, SessionOptions
from mnemosyne.models import Usage

__all__ = ["Structured", "structured"]

Output = TypeVar("Output", bound=BaseModel)

_QUOTED = 3000  # characters of an unusable answer's problems that are told to the model


@dataclass(frozen=True)
class Structured(Generic[Output]):
    """A checked answer and what it cost."""

    value: Output
    usage: Usage


async def structured(
    client: Client,
    journal: Journal,
    *,
    model: str,
    system: str,
    prompt: Prompt,
    output: type[Output],
    check: Callable[[Output], list[str]] = lambda value: [],
    retry: RetryPolicy | None = None,
) -> Structured[Output]:
    """Ask for an ``output``; an answer that is none, or fails ``check``, is sent back once with its problems.

    Args:
        check: Returns the problems that the schema cannot express, each one sentence.

    Raises:
        ModelError: The second answer cannot be used either (MN-0401). It is fatal, because the journal would replay
            the same two answers.
    """

    async def schema() -> dict[str, JsonValue]:
        return await asyncio.to_thread(_schema, output)  # the first use imports the SDK

    options = SessionOptions(model, system, output_schema=schema, max_turns=4, retry=retry or RetryPolicy())
    async with ClaudeSession(client, journal, options) as session:
        await session.query(prompt)
        text, usage = await _answer(session)
        value, problems = _read(text, output, check)
        if problems:
            await session.query(_repair(output.__name__, problems))
            text, usage = await _answer(session)
            value, problems = _read(text, output, check)
    if value is None or problems:
        raise ModelError(
            f"the model's answer is not a usable {output.__name__}",
            code="MN-0401",
            reason="; ".join(problems)[:1000],
            hint="use a model that supports structured output, or rephrase the prompt",
            fatal=True,
            failure=Failure.MALFORMED,
        )
    return Structured(value, usage)


async def _answer(session: ClaudeSession) -> tuple[str, Usage]:
    async for message in session.receive_response():
        if isinstance(message, ResultMessage):
            return message.text, message.usage
    raise AssertionError("a response ends with a ResultMessage")


def _read(text: str, output: type[Output], check: Callable[[Output], list[str]]) -> tuple[Output | None, list[str]]:
    try:
        value = output.model_validate_json(text)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc'])) or 'answer'}: {item['msg']}" for item in error.errors()]
        return None, problems
    return value, check(value)


def _repair(name: str, problems: list[str]) -> str:
    listed = "\n".join(f"- {problem}" for problem in problems)[:_QUOTED]
    return (
        f"Your answer cannot be used as {name}:\n<problems>\n{listed}\n</problems>\n"
        f"Answer again with the complete, corrected {name} as one JSON object and nothing else."
    )


def _schema(output: type[BaseModel]) -> dict[str, JsonValue]:
    # transform_schema puts what the API does not enforce (lengths, ranges, patterns) into the descriptions.
    import anthropic

    schema: dict[str, JsonValue] = anthropic.transform_schema(_complete(output.model_json_schema()))
    return schema


def _complete(schema: JsonValue) -> dict[str, JsonValue]:
    """Ask for every property, also where we have a default: a model that may leave a key out does."""
    walked = _walk(schema)
    assert isinstance(walked, dict)
    return walked


def _walk(value: JsonValue) -> JsonValue:
    if isinstance(value, list):
        return [_walk(item) for item in value]
    if not isinstance(value, dict):
        return value
    walked = {key: _walk(item) for key, item in value.items() if key != "default"}
    properties = walked.get("properties")
    if isinstance(properties, dict) and walked.get("type") == "object":
        walked["required"] = list(properties)
    return walked
