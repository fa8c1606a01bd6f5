"""The Messages API as data: what a request must look like, and what an answer looks like on the wire.

Strict where the real API is strict, since a laxer server would hide our own mistakes: no sampling parameters, no forced
tools, no prefill, thinking blocks unchanged, every tool use answered once and at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, cast

from mnemosyne.canonical import sha256_json

if TYPE_CHECKING:
    from pydantic import JsonValue

__all__ = [
    "MODEL",
    "VERSIONS",
    "Block",
    "RefusedError",
    "Reply",
    "check_request",
    "digest",
    "encode",
    "error_body",
    "events",
    "input_tokens",
    "message",
    "sign",
]

Block: TypeAlias = dict[str, object]

MODEL = "demo"
VERSIONS = ("2023-06-01", "2026-10-21")
_NO_SAMPLING_SINCE = "2026-10-21"
_CHARACTERS_PER_TOKEN = 4
_DELTA_CHARACTERS = 160

_KEYS = frozenset(
    {"cache_control", "container", "context_management", "diagnostics", "inference_geo", "max_tokens", "mcp_servers"}
    | {"messages", "metadata", "model", "output_config", "service_tier", "speed", "stop_sequences", "stream", "system"}
    | {"temperature", "thinking", "tool_choice", "tools", "top_k", "top_p", "user_profile_id", "workspace_id"}
)
_USER_BLOCKS = frozenset({"text", "image", "document", "tool_result"})
_ASSISTANT_BLOCKS = frozenset({"text", "thinking", "redacted_thinking", "tool_use"})
_UNSUPPORTED_SCHEMA_KEYS = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength"}
    | {"maxItems", "uniqueItems"}
)
_EFFORTS = frozenset({"low", "medium", "high", "xhigh", "max"})
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")


class RefusedError(Exception):
    """The request gets an error answer.

    Attributes:
        status: The HTTP status.
        type: The API's name for this kind of error.
        details: Further facts for programs.
    """

    def __init__(self, text: str, status: int = 400, type: str = "invalid_request_error", **details: object) -> None:
        super().__init__(text)
        self.status = status
        self.type = type
        self.details = details


@dataclass(frozen=True)
class Reply:
    """What the model says: content blocks, and why it stopped."""

    content: Sequence[Block] = field(default_factory=list)
    stop_reason: str = "end_turn"


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise RefusedError(text)


def digest(value: object) -> str:
    """Return the hash of a JSON value, as the journal of a run writes it."""
    return sha256_json(cast("JsonValue", value))


def sign(thinking: str) -> str:
    """Return the signature of a thinking block; an altered block does not match it any more."""
    return "demo-" + hashlib.sha256(f"mnemosyne demo: {thinking}".encode("utf-8", "surrogatepass")).hexdigest()


# --- requests -----------------------------------------------------------------------------------------------------


def check_request(body: object, version: str, *, counting: bool = False) -> dict[str, object]:
    """Return the request if the API would take it.

    Args:
        body: The parsed body.
        version: The ``anthropic-version`` header.
        counting: It is for ``count_tokens``, which needs no ``max_tokens``.

    Raises:
        RefusedError: With the status and the text of the error.
    """
    if not isinstance(body, dict):
        raise RefusedError("the request body must be a JSON object")
    if "thread" in body:
        raise RefusedError("thread: not supported", error_code="thread_unsupported_request", unsupported=["thread"])
    for key in body:
        _require(key in _KEYS, f"{key}: Extra inputs are not permitted")
    model = body.get("model")
    _require(isinstance(model, str), "model: Field required")
    if model != MODEL:
        raise RefusedError(f"model: {model}", 404, "not_found_error")
    _check_parameters(body, version, counting)
    _check_tools(body)
    _check_output(body.get("output_config"))
    _check_messages(body.get("messages"), has_tools=bool(body.get("tools")))
    return body


def _check_parameters(body: Mapping[str, object], version: str, counting: bool) -> None:
    limit = body.get("max_tokens")
    if not (counting and limit is None):
        _require(limit is not None, "max_tokens: Field required")
        _require(
            isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1, "max_tokens: must be at least 1"
        )
    if version >= _NO_SAMPLING_SINCE:
        for key in ("temperature", "top_p", "top_k"):
            _require(key not in body, f"{key}: not supported by this API version")
    _require(isinstance(body.get("stream", False), bool), "stream: Input should be a valid boolean")
    thinking = body.get("thinking")
    if thinking is not None:
        _require(
            isinstance(thinking, dict) and thinking.get("type") == "adaptive",
            "thinking.type: this model always thinks; only `adaptive` is supported",
        )
    system = body.get("system", "")
    _require(
        isinstance(system, str) or (isinstance(system, list) and all(_is_text(block) for block in system)),
        "system: Input should be a string or a list of text blocks",
    )


def _check_tools(body: Mapping[str, object]) -> None:
    tools = body.get("tools", [])
    _require(isinstance(tools, list), "tools: Input should be a valid list")
    names = []
    for index, tool in enumerate(tools if isinstance(tools, list) else []):
        _require(isinstance(tool, dict), f"tools.{index}: Input should be an object")
        name, schema = tool.get("name"), tool.get("input_schema")
        _require(isinstance(name, str) and bool(_TOOL_NAME.fullmatch(name)), f"tools.{index}.name: Field required")
        _require(
            isinstance(schema, dict) and schema.get("type") == "object",
            f"tools.{index}.input_schema: must be a schema of type object",
        )
        names.append(name)
    _require(len(names) == len(set(names)), "tools: Tool names must be unique")
    choice = body.get("tool_choice")
    if choice is not None:
        kind = choice.get("type") if isinstance(choice, dict) else None
        _require(kind in ("auto", "none"), f"tool_choice: forced tool use ({kind}) is not supported by this model")
        _require(bool(names), "tool_choice: may only be specified while providing tools")


def _check_output(config: object) -> None:
    if config is None:
        return
    if not isinstance(config, dict):
        raise RefusedError("output_config: Input should be an object")
    for key in config:
        _require(key in ("format", "effort", "task_budget"), f"output_config.{key}: Extra inputs are not permitted")
    _require(config.get("effort", "low") in _EFFORTS, f"output_config.effort: one of {', '.join(sorted(_EFFORTS))}")
    wanted = config.get("format")
    if wanted is None:
        return
    if not (isinstance(wanted, dict) and set(wanted) == {"type", "schema"} and wanted["type"] == "json_schema"):
        raise RefusedError("output_config.format: must be {type: json_schema, schema}")
    _require(isinstance(wanted["schema"], dict), "output_config.format.schema: Input should be an object")
    _check_schema(wanted["schema"])


def _check_schema(schema: object) -> None:
    place = "output_config.format.schema"
    if isinstance(schema, list):
        for entry in schema:
            _check_schema(entry)
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object":
        _require(
            schema.get("additionalProperties") is False,
            f"{place}: For 'object' type, 'additionalProperties' must be explicitly set to false",
        )
    for key in schema:
        _require(key not in _UNSUPPORTED_SCHEMA_KEYS, f"{place}: property '{key}' is not supported")
    _require(schema.get("minItems", 0) in (0, 1), f"{place}: 'minItems' other than 0 or 1 is not supported")
    for key, entry in schema.items():
        if key in ("properties", "$defs", "definitions") and isinstance(entry, dict):
            _check_schema(list(entry.values()))
        elif key in ("items", "anyOf", "oneOf", "allOf"):
            _check_schema(entry)


def _check_messages(messages: object, *, has_tools: bool) -> None:
    if not isinstance(messages, list) or not messages:
        raise RefusedError("messages: at least one message is required")
    expected, seen, pending = "user", set[str](), list[str]()
    for index, entry in enumerate(messages):
        place = f"messages.{index}"
        role = entry.get("role") if isinstance(entry, dict) else None
        if role == "system":
            continue
        if role != expected:
            raise RefusedError(
                f"{place}.role: roles must alternate, beginning with user; expected {expected}, found {role}"
            )
        _require(set(entry) <= {"role", "content"}, f"{place}: Extra inputs are not permitted")
        content = _content(entry.get("content"), place)
        if role == "user":
            _check_user(content, pending, place)
            pending = []
        else:
            pending = _check_assistant(content, seen, place)
        used_tools = bool(pending) or any(block["type"] == "tool_result" for block in content)
        _require(has_tools or not used_tools, "Requests which include tool_use or tool_result blocks must define tools")
        expected = "assistant" if role == "user" else "user"
    _require(
        expected == "assistant",
        "This model does not support assistant message prefill. The conversation must end with a user message.",
    )


def _content(content: object, place: str) -> list[Block]:
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(blocks, list) or not blocks:
        raise RefusedError(f"{place}.content: must be a non-empty string or list of blocks")
    for index, block in enumerate(blocks):
        _require(isinstance(block, dict) and isinstance(block.get("type"), str), f"{place}.content.{index}: no type")
        if block["type"] == "text":
            _require(_is_text(block), f"{place}.content.{index}: text content blocks must be non-empty")
    return blocks


def _check_user(content: Sequence[Block], pending: Sequence[str], place: str) -> None:
    results: list[object] = []
    after_text = False
    for index, block in enumerate(content):
        _require(block["type"] in _USER_BLOCKS, f"{place}.content.{index}: unexpected block {block['type']}")
        if block["type"] != "tool_result":
            after_text = True
            continue
        _require(not after_text, f"{place}: tool_result blocks must come first in the content")
        _require(isinstance(block.get("is_error", False), bool), f"{place}.content.{index}.is_error: not a boolean")
        _require(isinstance(block.get("content", ""), str | list), f"{place}.content.{index}.content: str or blocks")
        results.append(block.get("tool_use_id"))
    for unknown in [result for result in results if result not in pending]:
        raise RefusedError(f"{place}: unexpected `tool_use_id` found in `tool_result` blocks: {unknown}")
    for missing in [use for use in pending if use not in results]:
        raise RefusedError(
            f"{place}: `tool_use` ids were found without `tool_result` blocks immediately after: {missing}"
        )
    _require(len(results) == len(set(map(str, results))), f"{place}: each tool_use must have a single result")


def _check_assistant(content: Sequence[Block], seen: set[str], place: str) -> list[str]:
    """Check a turn that we gave before, and return the ids of its tool uses."""
    uses: list[str] = []
    for index, block in enumerate(content):
        kind = block["type"]
        _require(kind in _ASSISTANT_BLOCKS, f"{place}.content.{index}: unexpected block {kind}")
        if kind == "thinking":
            thinking, signature = block.get("thinking"), block.get("signature")
            _require(
                isinstance(thinking, str) and signature == sign(thinking),
                f"{place}.content.{index}: Invalid `signature` in `thinking` block; it must be passed back unchanged",
            )
        if kind == "tool_use":
            identity = block.get("id")
            if not isinstance(identity, str) or not isinstance(block.get("name"), str):
                raise RefusedError(f"{place}.content.{index}: a tool_use needs id and name")
            _require(isinstance(block.get("input"), dict), f"{place}.content.{index}.input: must be an object")
            _require(identity not in seen, f"{place}: `tool_use` ids must be unique")
            seen.add(identity)
            uses.append(identity)
    starts_with_thought = content[0]["type"] in ("thinking", "redacted_thinking")
    _require(
        starts_with_thought or not uses,
        f"{place}.content.0.type: Expected `thinking` or `redacted_thinking`, but found `{content[0]['type']}`",
    )
    return uses


def _is_text(block: object) -> bool:
    return isinstance(block, dict) and block.get("type") == "text" and bool(block.get("text"))


# --- answers ------------------------------------------------------------------------------------------------------


def _tokens(value: object) -> int:
    return -(-len(json.dumps(value, ensure_ascii=False)) // _CHARACTERS_PER_TOKEN)


def input_tokens(body: Mapping[str, object]) -> int:
    """Estimate, from the length of the text, what the request costs to read."""
    return sum(_tokens(body[key]) for key in ("system", "tools", "messages", "output_config") if body.get(key))


def message(body: Mapping[str, object], reply: Reply, name: str) -> Block:
    """Return the answer as one JSON object; cut off where it needs more than ``max_tokens``."""
    limit = body["max_tokens"]
    content, stop_reason, spent = list(reply.content), reply.stop_reason, _tokens(reply.content)
    if isinstance(limit, int) and spent > limit:
        text = "".join(str(block["text"]) for block in content if block["type"] == "text")
        content = [{"type": "text", "text": text[: limit * _CHARACTERS_PER_TOKEN] or "..."}]
        stop_reason, spent = "max_tokens", limit
    return {
        "id": f"msg_{name}",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {
            "input_tokens": input_tokens(body),
            "output_tokens": spent,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
        },
    }


def events(answer: Block) -> Iterator[Block]:
    """Yield the stream of events that tells ``answer``; each carries its name as ``type``."""
    usage, content = answer["usage"], answer["content"]
    if not isinstance(usage, dict) or not isinstance(content, list):
        raise TypeError("not an answer of message()")
    start = answer | {"content": [], "stop_reason": None, "usage": usage | {"output_tokens": 1}}
    start.pop("stop_details", None)
    yield {"type": "message_start", "message": start}
    yield {"type": "ping"}
    for index, block in enumerate(content):
        opening, deltas = _deltas(block)
        yield {"type": "content_block_start", "index": index, "content_block": opening}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    ending = {key: answer[key] for key in ("stop_reason", "stop_sequence", "stop_details") if key in answer}
    yield {"type": "message_delta", "delta": ending, "usage": usage}
    yield {"type": "message_stop"}


def encode(event: Block) -> bytes:
    """Return one event as it goes out."""
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode("utf-8", "replace")


def _deltas(block: Block) -> tuple[Block, list[Block]]:
    """Return a block as it is opened, and what is added to it afterwards."""
    if block["type"] == "tool_use":
        parts = ["", *_pieces(json.dumps(block["input"], ensure_ascii=False))]
        return block | {"input": {}}, [{"type": "input_json_delta", "partial_json": part} for part in parts]
    if block["type"] == "thinking":
        thoughts: list[Block] = [
            {"type": "thinking_delta", "thinking": part} for part in _pieces(str(block["thinking"]))
        ]
        signature: Block = {"type": "signature_delta", "signature": block["signature"]}
        return block | {"thinking": "", "signature": ""}, [*thoughts, signature]
    return block | {"text": ""}, [{"type": "text_delta", "text": part} for part in _pieces(str(block["text"]))]


def _pieces(text: str) -> list[str]:
    return [text[start : start + _DELTA_CHARACTERS] for start in range(0, len(text), _DELTA_CHARACTERS)]


def error_body(problem: RefusedError, request: str) -> Block:
    """Return the body of an error answer."""
    error: Block = {"type": problem.type, "message": str(problem)}
    if problem.details:
        error["details"] = problem.details
    return {"type": "error", "error": error, "request_id": request}
