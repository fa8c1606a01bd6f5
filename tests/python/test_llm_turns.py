"""One request, one answer: what counts as an answer (TRUTH-1), and what an error says (SECRET-1)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from messages_server import MessagesServer, Reply, failing, saying, stream, thinking_then, using
from mnemosyne.canonical import sha256_json
from mnemosyne.errors import EnvironmentProblem, MissingCredential
from mnemosyne.llm import Client, TurnError, prices
from mnemosyne.llm.turns import Turn
from mnemosyne.models import Usage
from pydantic import JsonValue, SecretStr

KEY = "sk-ant-test-0123456789abcdef"


def body(**more: JsonValue) -> dict[str, JsonValue]:
    opening: dict[str, JsonValue] = {
        "model": "demo",
        "max_tokens": 100,
        "stream": True,
        "system": "You are a test. Grüße, 世界 😀",
        "messages": [{"role": "user", "content": 'a "quoted" </tag>\n\u2028 line'}],
    }
    return {**opening, **more}


@asynccontextmanager
async def client_of(server: MessagesServer) -> AsyncIterator[Client]:
    client = Client({"base_url": server.url, "api_key": KEY})
    try:
        yield client
    finally:
        await client.close()


async def sent(reply: Reply, **more: JsonValue) -> Turn:
    with MessagesServer(reply) as server:
        async with client_of(server) as client:
            return await client.send(body(**more))


async def test_a_whole_answer_is_put_together_from_its_pieces() -> None:
    turn = await sent(saying("Hello, 世界"))
    assert turn.text == "Hello, 世界"
    assert turn.stop_reason == "end_turn"
    expected = Usage(turns=1, input_tokens=100, output_tokens=20, cache_read_tokens=3, cache_write_tokens=2)
    assert turn.usage == expected
    assert Turn.from_json(turn.to_json()) == turn


async def test_the_body_that_was_hashed_is_the_body_the_server_received() -> None:
    asked = body(
        tools=[{"name": "read_file", "description": "é", "input_schema": {"type": "object", "properties": {}}}],
        output_config={"format": {"type": "json_schema", "schema": {"type": "object", "title": "T"}}},
    )
    with MessagesServer(saying("ok")) as server:
        async with client_of(server) as client:
            await client.send(asked)
    assert server.seen[0].body_sha256 == sha256_json(asked)
    assert server.seen[0].path == "/v1/messages"


async def test_the_key_travels_as_bearer_and_nothing_in_the_environment_replaces_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-from-the-environment")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "token-from-the-environment")
    with MessagesServer(saying("ok")) as server:
        async with client_of(server) as client:
            await client.send(body())
    assert server.seen[0].headers["Authorization"] == f"Bearer {KEY}"
    assert not {"temperature", "top_p", "top_k", "tool_choice"} & set(server.seen[0].body)


async def test_the_guard_of_21333_tokens_does_not_stop_a_longer_answer() -> None:
    """The SDK refuses more without a stream: ``ValueError``, before anything is sent."""
    assert (await sent(saying("long"), max_tokens=64_000)).text == "long"


async def test_without_a_credential_the_sdk_raises_a_bare_type_error_and_we_say_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in os.environ if name.startswith(("ANTHROPIC_", "XDG_"))]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # the SDK looks there too
    with MessagesServer(saying("ok")) as server:
        import anthropic

        async with anthropic.AsyncAnthropic(base_url=server.url) as sdk:
            with pytest.raises(TypeError, match="authentication"):
                await sdk.messages.create(**body())  # type: ignore[call-overload]
        assert server.seen == []
        client = Client({"base_url": server.url})  # a named server gets a fixed key
        assert (await client.send(body())).text == "ok"
        await client.close()
    with pytest.raises(MissingCredential) as raised:
        await Client({}).send(body())
    assert raised.value.code == "MN-0201"


async def test_a_proxy_in_the_environment_does_not_capture_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert (await sent(saying("direct"))).text == "direct"


async def test_trap_6_thinking_and_unknown_blocks_are_kept_exactly_as_they_came() -> None:
    unknown = {"type": "brand_new", "payload": {"a": [1, None]}}
    turn = await sent(thinking_then(unknown, {"type": "text", "text": "done"}, stop_reason="end_turn"))
    thinking = {"type": "thinking", "thinking": "let me see", "signature": "c2lnbmF0dXJl"}
    assert turn.content == [thinking, unknown, {"type": "text", "text": "done"}]
    assert turn.text == "done"


async def test_empty_text_is_left_out_because_it_cannot_be_sent_back() -> None:
    events = stream([{"type": "text", "text": ""}, {"type": "text", "text": "x"}], "end_turn")
    assert (await sent(Reply(events=events))).content == [{"type": "text", "text": "x"}]


async def test_an_unknown_event_is_passed_over() -> None:
    events = saying("fine").events or []
    assert (await sent(Reply(events=[events[0], {"type": "surprise", "x": 1}, *events[1:]]))).text == "fine"


async def test_trap_1_a_dropped_connection_is_a_failed_turn_of_unknown_cost() -> None:
    with pytest.raises(TurnError) as raised:
        await sent(Reply(events=(saying("half").events or [])[:4], ending="drop"))
    assert (raised.value.code, raised.value.fatal, raised.value.usage) == ("MN-0404", False, None)


async def test_trap_2_a_stream_cut_cleanly_is_no_answer() -> None:
    with pytest.raises(TurnError, match="broke off"):
        await sent(Reply(events=(saying("half").events or [])[:-2]))


async def test_trap_2_a_stream_without_message_stop_is_no_answer_even_with_a_stop_reason() -> None:
    with pytest.raises(TurnError, match="broke off"):
        await sent(Reply(events=(saying("half").events or [])[:-1]))


async def test_trap_2_a_tool_call_cut_inside_its_input_is_never_a_call_with_empty_input() -> None:
    events = using(("t1", "run_command", {"command": "rm -r build"})).events or []
    inside = [*events[:4], *events[-2:]]
    assert inside[-1] == {"type": "message_stop"}
    with pytest.raises(TurnError):
        await sent(Reply(events=inside))


async def test_tool_input_that_is_not_json_is_no_answer() -> None:
    events = using(("t1", "run_command", {"command": "ls"})).events or []
    broken = [event for event in events if event.get("delta", {}).get("partial_json", "")[-1:] != "}"]
    with pytest.raises(TurnError):
        await sent(Reply(events=broken))


@pytest.mark.parametrize("kind", ["overloaded_error", "api_error", "rate_limit_error", "an_unheard_of_problem"])
async def test_trap_3_an_error_event_in_the_stream_is_told_by_its_type(kind: str) -> None:
    error = {"type": "error", "error": {"type": kind, "message": "busy"}}
    with pytest.raises(TurnError, match="cannot be reached") as raised:
        await sent(Reply(events=[*(saying("x").events or [])[:3], error]))
    assert not raised.value.fatal
    assert kind in raised.value.reason


async def test_trap_3_an_error_event_about_the_request_is_fatal() -> None:
    error = {"type": "error", "error": {"type": "invalid_request_error", "message": "bad tool"}}
    with pytest.raises(TurnError, match="rejected") as raised:
        await sent(Reply(events=[error]))
    assert raised.value.fatal


@pytest.mark.parametrize("raw", ["event: message_delta\ndata: {not json\n\n", "data: [1, 2]\n\n"])
async def test_trap_4_a_chunk_that_cannot_be_decoded_breaks_the_turn(raw: str) -> None:
    events = saying("fine").events or []
    with pytest.raises(TurnError, match="cannot be understood") as raised:
        await sent(Reply(events=[*events[:4], {"raw": raw}, *events[4:]]))
    assert raised.value.failure == "malformed"


async def test_trap_4_an_event_without_a_name_is_not_lost() -> None:
    events = saying("fine").events or []
    named = [event for event in events if event["type"] != "message_stop"]
    assert (await sent(Reply(events=[*named, {"raw": 'data: {"type":"message_stop"}\n\n'}]))).text == "fine"


@pytest.mark.parametrize("kind", ["text/html", "application/json"])
async def test_trap_5_a_page_instead_of_a_stream_is_a_clear_error(kind: str) -> None:
    with pytest.raises(TurnError, match="not a message stream") as raised:
        await sent(Reply(body=b'"<html>please log in</html>"', content_type=kind))
    assert raised.value.fatal
    assert kind in raised.value.reason


async def test_trap_6_an_unknown_stop_reason_is_handed_on_as_it_is() -> None:
    assert (await sent(saying("x", "brand_new_reason"))).stop_reason == "brand_new_reason"


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_ends_the_run_and_is_not_quoted(status: int) -> None:
    with pytest.raises(MissingCredential) as raised:
        await sent(failing(status, "authentication_error", f"invalid key {KEY} or {KEY[:9]}..."))
    assert raised.value.code == "MN-0202"
    assert KEY[:8] not in raised.value.format()


@pytest.mark.parametrize("status", [400, 402, 404, 413, 422])
async def test_a_rejected_request_is_fatal_and_says_what_the_server_said(status: int) -> None:
    with pytest.raises(TurnError) as raised:
        await sent(failing(status, "invalid_request_error", "temperature is not allowed"))
    assert raised.value.fatal
    assert raised.value.code == "MN-0408"
    assert "temperature is not allowed" in raised.value.reason


async def test_secret_1_no_error_and_no_repr_shows_the_key_or_its_prefix() -> None:
    with MessagesServer(failing(500, "api_error", f"key={KEY} and Bearer {KEY[:12]}***")) as server:
        async with client_of(server) as client:
            with pytest.raises(TurnError) as raised:
                await client.send(body())
            assert KEY[:8] not in raised.value.format() + repr(raised.value) + repr(client)
            assert raised.value.__suppress_context__


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_server_that_never_answered_ends_the_run() -> None:
    client = Client({"base_url": f"http://127.0.0.1:{closed_port()}", "api_key": KEY})
    with pytest.raises(EnvironmentProblem) as raised:
        await client.send(body())
    assert raised.value.code == "MN-0205"
    assert not isinstance(raised.value, MissingCredential)


async def test_a_server_that_went_away_later_is_an_outage() -> None:
    with MessagesServer(saying("first")) as server:
        client = Client({"base_url": server.url, "api_key": KEY})
        await client.send(body())
    await client.close()
    with pytest.raises(TurnError) as raised:
        await client.send(body())
    assert not raised.value.fatal
    assert raised.value.usage == Usage()


async def test_a_key_may_come_as_a_secret() -> None:
    with MessagesServer(saying("ok")) as server:
        config: dict[str, JsonValue] = {"base_url": server.url}
        client = Client({**config, "api_key": SecretStr(KEY)})  # type: ignore[dict-item]
        await client.send(body())
        await client.close()
    assert server.seen[0].headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "module",
    ["mnemosyne.llm", "mnemosyne.agents.stages", "mnemosyne.agents.executor", "mnemosyne.agents.agent_factory"],
)
def test_importing_a_room_does_not_import_the_sdk(module: str) -> None:
    code = f"import sys, {module}; sys.exit('anthropic' in sys.modules or 'httpx2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("model", "usage", "dollars"),
    [
        ("claude-opus-5-5", Usage(input_tokens=1_000_000, output_tokens=100_000), 6.0),
        ("claude-haiku-5-5", Usage(input_tokens=200_000), 0.1),
        ("claude-haiku-5-5", Usage(input_tokens=100_000), 0.01),
        ("claude-sonnet-5-5", Usage(cache_read_tokens=1_000_000, cache_write_tokens=1_000_000), 2.6),
        ("demo", Usage(input_tokens=10**9), 0.0),
        ("nobody-knows-it", Usage(input_tokens=10**9), 0.0),
    ],
)
def test_usage_is_priced_by_the_data_file(model: str, usage: Usage, dollars: float) -> None:
    assert prices.cost_usd(model, usage) == pytest.approx(dollars)


def test_budget_1_a_reservation_covers_the_longest_answer_and_an_unknown_price_is_not_zero() -> None:
    known, unknown = prices.reservation(body(model="claude-opus-5-5")), prices.reservation(body(model="nobody-knows"))
    assert isinstance(known["tokens"], int)
    assert known["tokens"] > 100
    assert isinstance(known["usd"], float)
    assert known["usd"] >= 100 * 20e-6
    assert unknown["usd"] is None


def test_a_claude_that_the_data_file_does_not_know_has_room_to_think() -> None:
    assert prices.max_tokens("claude-not-known-yet") == prices.max_tokens("claude-opus-5-5")
    assert prices.max_tokens("a-local-model") < prices.max_tokens("claude-not-known-yet")
