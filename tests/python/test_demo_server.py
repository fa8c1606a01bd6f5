"""The demo server keeps the wire contract: the real SDK works with it, and what the real API refuses it refuses."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import mnemosyne.demo.server as server_module
import pytest
from mnemosyne.canonical import sha256_json
from mnemosyne.demo.launch import start_server
from mnemosyne.demo.sample import DEMO_PROMPT, copy_sample
from mnemosyne.guard import Guard
from mnemosyne.models import Plan

Body = dict[str, Any]

PACKAGES = Path(server_module.__file__).parents[2]
TOOL_NAMES = ("read_file", "write_file", "edit_file", "list_files", "search", "run_command")
TOOLS = [{"name": name, "input_schema": {"type": "object", "properties": {}}} for name in TOOL_NAMES]
TASK = (
    '<task id="t1">\nFinish it\n</task>\n<scope>\na.py\n</scope>\n<requirements>\n[]\n</requirements>\n'
    "<acceptance>\npython3 -m unittest test_a\n</acceptance>\n<context>\n</context>"
)
SCHEMA = {"title": "Plan", "type": "object", "properties": {}, "additionalProperties": False}


class Running:
    """A demo server in its own process."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "requests.jsonl"
        arguments = [sys.executable, "-P", "-S", "-m", "mnemosyne.demo.server", "--port", "0", "--log", str(self.log)]
        self.process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, text=True, cwd=folder, env={"PYTHONPATH": str(PACKAGES)}
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.port = int(self.url.rsplit(":", 1)[1])

    def lines(self) -> list[Body]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def wait_for_line(self, matches: Callable[[Body], bool]) -> Body:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for line in self.lines():
                if matches(line):
                    return line
            time.sleep(0.01)
        raise AssertionError(f"no such line in {self.lines()}")

    def post(
        self, body: object, path: str = "/v1/messages", headers: dict[str, str] | None = None
    ) -> tuple[int, Body, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        sent = {"authorization": "Bearer k", "anthropic-version": "2026-10-21"} if headers is None else headers
        with contextlib.closing(connection):
            connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body), sent)
            response = connection.getresponse()
            return response.status, json.loads(response.read()), {k.lower(): v for k, v in response.getheaders()}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    server = Running(tmp_path_factory.mktemp("demo-server"))
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "ANTHROPIC_CUSTOM_HEADERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def client(running: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(api_key="k", base_url=running.url, max_retries=0, timeout=20)


def hello(**changes: object) -> Body:
    body = {"model": "demo", "max_tokens": 1000, "messages": [{"role": "user", "content": "hello"}]}
    return {key: value for key, value in (body | changes).items() if value is not None}


def plan_request(folder: Path) -> Body:
    copy_sample(folder)
    entries = [
        f'<file path="{path.relative_to(folder)}">\n{path.read_text()}</file>' for path in sorted(folder.rglob("*.py"))
    ]
    text = f"<request>\n{DEMO_PROMPT}\n</request>\n<project>\n" + "\n".join(entries) + "\n</project>"
    return hello(
        max_tokens=16_000,
        messages=[{"role": "user", "content": text}],
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )


# --- the real SDK -------------------------------------------------------------------------------------------------


def test_the_sdk_gets_a_refusal_as_a_complete_message(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**hello())
    assert isinstance(message, anthropic.types.Message)
    assert (message.stop_reason, message.model, message.role) == ("refusal", "demo", "assistant")
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0
    assert message.usage.cache_read_input_tokens == 0


def test_the_sdk_streams_the_same_answer_that_it_gets_in_one_piece(client: anthropic.Anthropic, tmp_path: Path) -> None:
    body = plan_request(tmp_path) | {"thinking": {"type": "adaptive", "display": "summarized"}}
    with client.messages.stream(**body) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_message()
    whole = client.messages.create(**body)
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    told, given = ([block.model_dump(exclude_none=True) for block in turn.content] for turn in (streamed, whole))
    assert told == given
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    assert [block.type for block in whole.content] == ["thinking", "text"]
    assert whole.stop_reason == streamed.stop_reason == "end_turn"
    assert len(json.loads(whole.content[-1].text)["tasks"]) == 4  # type: ignore[union-attr]


def test_the_sdk_parses_a_plan_with_the_schema_it_makes_of_our_model(
    client: anthropic.Anthropic, tmp_path: Path
) -> None:
    body = plan_request(tmp_path)
    del body["output_config"]
    message = client.messages.parse(**body, output_format=Plan)
    assert isinstance(message.parsed_output, Plan)


def work_turn(client: anthropic.Anthropic, messages: list[Body]) -> Any:
    with client.messages.stream(**hello(max_tokens=4000, messages=messages, tools=TOOLS)) as stream:
        return stream.get_final_message()


def test_a_streamed_tool_turn_goes_back_unchanged_and_leads_to_the_next_one(client: anthropic.Anthropic) -> None:
    messages: list[Body] = [{"role": "user", "content": TASK}]
    turn = work_turn(client, messages)
    assert turn.stop_reason == "tool_use"
    assert [block.type for block in turn.content] == ["thinking", "tool_use", "tool_use"]
    assert [(block.name, block.input) for block in turn.content[1:]] == [
        ("list_files", {}),
        ("read_file", {"path": "a.py"}),
    ]
    source = 'def a(x):\n    """Rule: x times 2."""\n    raise NotImplementedError\n'
    results = [("a.py", turn.content[1].id), (source, turn.content[2].id)]
    messages += [
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in turn.content]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": use, "content": text} for text, use in results],
        },
    ]
    following = work_turn(client, messages)
    assert following.content[1].name == "edit_file"
    assert following.content[1].input["new"].endswith("return x * 2")


@pytest.mark.parametrize("authentication", [{"api_key": "k"}, {"auth_token": "k"}])
def test_both_ways_to_give_the_sdk_a_key_work(running: Running, authentication: dict[str, str]) -> None:
    client = anthropic.Anthropic(base_url=running.url, max_retries=0, **authentication)  # type: ignore[arg-type]
    assert client.messages.create(**hello()).stop_reason == "refusal"


def test_the_sdk_counts_tokens_and_lists_one_model(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="demo", messages=[{"role": "user", "content": "hello"}])
    assert counted.input_tokens == client.messages.create(**hello()).usage.input_tokens
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").display_name == "mnemosyne offline demo model"


def test_the_sdk_raises_its_own_errors(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as not_found:
        client.messages.create(**hello(model="claude-opus-5-5"))
    assert not_found.value.type == "not_found_error"
    assert str(not_found.value.request_id).startswith("req_")
    with pytest.raises(anthropic.BadRequestError) as bad_request:
        client.messages.create(**hello(tools=TOOLS, tool_choice={"type": "any"}))
    assert bad_request.value.type == "invalid_request_error"


def test_an_answer_that_does_not_fit_is_cut_and_says_so(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**hello(max_tokens=5))
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 5
    assert len(message.content[0].text) == 20  # type: ignore[union-attr]


# --- authentication and routes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": "Bearer k"}, 200),
        ({"x-api-key": "k"}, 200),
        ({}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Basic k"}, 401),
        ({"x-api-key": ""}, 401),
    ],
)
def test_a_key_is_needed_in_either_header(running: Running, headers: dict[str, str], status: int) -> None:
    found, body, _ = running.post(hello(), headers=headers | {"anthropic-version": "2023-06-01"})
    assert found == status
    if status == 401:
        assert body["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(("version", "status"), [("2023-06-01", 200), ("2026-10-21", 200), ("1999-01-01", 400)])
def test_only_known_versions_are_spoken(running: Running, version: str, status: int) -> None:
    assert running.post(hello(), headers={"x-api-key": "k", "anthropic-version": version})[0] == status


def test_a_missing_version_is_refused(running: Running) -> None:
    assert running.post(hello(), headers={"x-api-key": "k"})[0] == 400


def test_an_unknown_route_is_404_a_wrong_method_405_and_the_query_is_ignored(running: Running) -> None:
    assert running.post(hello(), "/v1/complete")[0] == 404
    assert running.post({}, "/v1/models")[0] == 405
    status, body, headers = running.post(hello(), "/v1/messages?beta=true")
    assert status == 200
    assert body["type"] == "message"
    assert headers["request-id"].startswith("req_")


def test_an_error_has_the_form_of_the_api(running: Running) -> None:
    status, body, headers = running.post(hello(messages=[]))
    assert status == 400
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["request_id"] == headers["request-id"]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"max_tokens": NaN}', b"[" * 100_000, b"\xff"])
def test_a_body_that_is_no_json_object_is_refused(running: Running, data: bytes) -> None:
    status, body, _ = running.post(data)
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")


def test_many_requests_share_one_connection_also_after_an_error(running: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    headers = {"x-api-key": "k", "anthropic-version": "2026-10-21"}
    with contextlib.closing(connection):
        sockets = set()
        for body, status in ((hello(), 200), (hello(stream=True), 200), ({}, 400), (hello(), 200)):
            connection.request("POST", "/v1/messages", json.dumps(body), headers)
            sockets.add(connection.sock)
            response = connection.getresponse()
            assert response.status == status
            response.read()
        assert len(sockets) == 1


# --- what the real API refuses ------------------------------------------------------------------------------------


def answered(*uses: str, **changes: object) -> list[Body]:
    """A conversation with one tool turn, as this server gave it."""
    from mnemosyne.demo.wire import sign

    blocks: list[Body] = [{"type": "thinking", "thinking": "Hm.", "signature": sign("Hm.")}]
    blocks += [{"type": "tool_use", "id": use, "name": "list_files", "input": {}} for use in uses]
    results = [{"type": "tool_result", "tool_use_id": use, "content": "a.py"} for use in uses]
    return [
        {"role": "user", "content": TASK},
        {"role": "assistant", "content": changes.get("assistant", blocks)},
        {"role": "user", "content": changes.get("results", results)},
    ]


def result(use: str) -> Body:
    return {"type": "tool_result", "tool_use_id": use, "content": "a.py"}


def output_format(schema: Body) -> Body:
    return {"format": {"type": "json_schema", "schema": schema}}


USE = {"type": "tool_use", "id": "u1", "name": "list_files", "input": {}}
USER = {"role": "user", "content": "hello"}
ALTERED = {"type": "thinking", "thinking": "Hm!", "signature": "demo-0"}

REFUSED: dict[str, tuple[Body, str]] = {
    "no model": ({"model": None}, "model"),
    "no max_tokens": ({"max_tokens": None}, "max_tokens"),
    "max_tokens zero": ({"max_tokens": 0}, "max_tokens"),
    "temperature": ({"temperature": 1.0}, "temperature"),
    "top_p": ({"top_p": 1.0}, "top_p"),
    "top_k": ({"top_k": 5}, "top_k"),
    "unknown key": ({"max_token": 5}, "max_token: Extra inputs"),
    "disabled thinking": ({"thinking": {"type": "disabled"}}, "thinking"),
    "old thinking": ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
    "forced any": ({"tools": TOOLS, "tool_choice": {"type": "any"}}, "tool_choice"),
    "forced tool": ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "search"}}, "tool_choice"),
    "two tools of one name": ({"tools": [TOOLS[0], TOOLS[0]]}, "unique"),
    "tool without schema": ({"tools": [{"name": "a"}]}, "input_schema"),
    "thread": ({"thread": {"type": "create"}}, "thread"),
    "stream is text": ({"stream": "yes"}, "stream"),
    "no messages": ({"messages": []}, "at least one message"),
    "prefill": ({"messages": [USER, {"role": "assistant", "content": "{"}]}, "prefill"),
    "assistant first": ({"messages": [{"role": "assistant", "content": "hi"}, USER]}, "alternate"),
    "two user turns": ({"messages": [USER, USER]}, "alternate"),
    "empty text": ({"messages": [{"role": "user", "content": ""}]}, "non-empty"),
    "unknown block": ({"messages": [{"role": "user", "content": [{"type": "song"}]}]}, "unexpected block"),
    "open object": ({"output_config": output_format({"type": "object"})}, "additionalProperties"),
    "open inner object": (
        {"output_config": output_format(SCHEMA | {"properties": {"a": {"items": {"type": "object"}}}})},
        "additionalProperties",
    ),
    "open definition": ({"output_config": output_format(SCHEMA | {"$defs": {"A": {"type": "object"}}})}, "additional"),
    "minimum": ({"output_config": output_format(SCHEMA | {"properties": {"a": {"minimum": 1}}})}, "minimum"),
    "two items at least": ({"output_config": output_format({"type": "array", "minItems": 2})}, "minItems"),
    "old output_format": ({"output_format": SCHEMA}, "Extra inputs"),
    "effort": ({"output_config": {"effort": "heroic"}}, "effort"),
    "altered thinking": ({"tools": TOOLS, "messages": answered("u1", assistant=[ALTERED, USE])}, "unchanged"),
    "dropped thinking": ({"tools": TOOLS, "messages": answered("u1", assistant=[USE])}, "Expected `thinking`"),
    "missing result": ({"tools": TOOLS, "messages": answered("u1", "u2", results=[result("u1")])}, "u2"),
    "no result at all": ({"tools": TOOLS, "messages": [*answered("u1")[:2], USER]}, "without `tool_result`"),
    "unknown result": ({"tools": TOOLS, "messages": answered("u1", results=[result("u1"), result("u9")])}, "u9"),
    "result twice": ({"tools": TOOLS, "messages": answered("u1", results=[result("u1"), result("u1")])}, "single"),
    "text before result": (
        {"tools": TOOLS, "messages": answered("u1", results=[{"type": "text", "text": "so"}, result("u1")])},
        "come first",
    ),
    "split results": (
        {
            "tools": TOOLS,
            "messages": [
                *answered("u1", "u2", results=[result("u1")]),
                {"role": "user", "content": [result("u2")]},
            ],
        },
        "u2",
    ),
    "same id twice": ({"tools": TOOLS, "messages": answered("u1", "u1")}, "unique"),
    "tools not defined": ({"messages": answered("u1")}, "must define tools"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_real_api_refuses_is_refused(running: Running, name: str) -> None:
    changes, words = REFUSED[name]
    status, body, _ = running.post(hello(**changes) | {k: v for k, v in changes.items() if v is not None})
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    assert words in body["error"]["message"]


def test_the_refused_cases_differ_from_accepted_ones_only_in_their_fault(running: Running) -> None:
    accepted: list[Body] = [
        {"tools": TOOLS, "messages": answered("u1", "u2")},
        {"tools": TOOLS, "messages": answered("u1", results=[result("u1"), {"type": "text", "text": "so"}])},
        {"tools": TOOLS, "tool_choice": {"type": "auto"}},
        {"thinking": {"type": "adaptive", "display": "summarized"}},
        {"output_config": {"effort": "low", **output_format(SCHEMA)}},
        {"system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]},
        {"messages": [{"role": "system", "content": "Be kind."}, USER]},
        {"cache_control": {"type": "ephemeral"}},
    ]
    for changes in accepted:
        assert running.post(hello(**changes))[0] == 200, changes


def test_threads_are_declined_in_the_form_that_lets_the_sdk_fall_back(running: Running) -> None:
    _, body, _ = running.post(hello(thread={"type": "create"}))
    assert body["error"]["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}


# --- the stream ---------------------------------------------------------------------------------------------------


def raw_stream(running: Running, body: Body) -> list[tuple[str, Body]]:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    headers = {"x-api-key": "k", "anthropic-version": "2026-10-21"}
    with contextlib.closing(connection):
        connection.request("POST", "/v1/messages", json.dumps(body | {"stream": True}), headers)
        response = connection.getresponse()
        assert response.getheader("transfer-encoding") == "chunked"
        assert str(response.getheader("content-type")).startswith("text/event-stream")
        text = response.read().decode()
    return [(name, json.loads(data)) for name, data in re.findall(r"event: (.*)\ndata: (.*)\n\n", text)]


def test_the_events_of_a_tool_turn_come_in_the_order_of_the_api(running: Running) -> None:
    body = hello(messages=[{"role": "user", "content": TASK}], tools=TOOLS)
    body["thinking"] = {"type": "adaptive", "display": "summarized"}
    events = raw_stream(running, body)
    assert all(name == data["type"] for name, data in events)
    names = [name for name, _ in events]
    assert names[:2] == ["message_start", "ping"]
    assert names[-2:] == ["message_delta", "message_stop"]
    start = events[0][1]["message"]
    assert start["content"] == []
    assert start["stop_reason"] is None
    deltas = [data["delta"]["type"] for name, data in events if name == "content_block_delta" and data["index"] == 0]
    assert deltas[0] == "thinking_delta"
    assert deltas[-1] == "signature_delta"
    opened = [data["content_block"] for name, data in events if name == "content_block_start"]
    assert [block["type"] for block in opened] == ["thinking", "tool_use", "tool_use"]
    assert opened[1]["input"] == {}
    assert opened[0]["signature"] == ""
    pieces = [data["delta"]["partial_json"] for name, data in events if data.get("index") == 2 and "delta" in data]
    assert pieces[0] == ""
    assert json.loads("".join(pieces)) == {"path": "a.py"}
    assert events[-2][1]["delta"]["stop_reason"] == "tool_use"


def test_thoughts_are_hidden_unless_they_are_asked_for(running: Running) -> None:
    body = hello(messages=[{"role": "user", "content": TASK}], tools=TOOLS)
    assert running.post(body)[1]["content"][0]["thinking"] == ""
    shown = running.post(body | {"thinking": {"type": "adaptive", "display": "summarized"}})[1]["content"][0]
    assert shown["thinking"] != ""


# --- the log ------------------------------------------------------------------------------------------------------


def test_every_request_leaves_one_line_with_the_hash_of_its_canonical_body(running: Running) -> None:
    body = hello(metadata={"user_id": "schön"})
    running.post(json.dumps(body, indent=3).encode())
    line = running.wait_for_line(lambda line: line["body_sha256"] == sha256_json(body))
    assert set(line) == {"at", "method", "path", "body_sha256", "status", "completed", "fault"}
    assert (line["method"], line["path"], line["status"], line["completed"]) == ("POST", "/v1/messages", 200, True)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["at"])


def test_a_refused_request_is_logged_with_its_status(running: Running) -> None:
    body = hello(metadata={"user_id": "refused"}, max_tokens=0)
    running.post(body)
    assert running.wait_for_line(lambda line: line["body_sha256"] == sha256_json(body))["status"] == 400


def test_an_answer_whose_client_went_away_is_logged_as_not_completed(running: Running) -> None:
    # Larger than all buffers on the way, so that the answer cannot be out before the client is gone.
    words = " ".join(["green"] * 3)
    evidence = [{"command": words, "exit_code": 1}] * 20_000
    requirements = [{"id": f"R{number}"} for number in range(100)]
    text = (
        f"<requirements>\n{json.dumps(requirements)}\n</requirements>\n<diff>\n+x\n</diff>\n"
        f"<evidence>\n{json.dumps(evidence)}\n</evidence>"
    )
    body = hello(
        max_tokens=10**9,
        stream=True,
        messages=[{"role": "user", "content": text}],
        output_config=output_format(SCHEMA | {"title": "Judgement"}),
    )
    data = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        lines = ["POST /v1/messages HTTP/1.1", "x-api-key: k", "anthropic-version: 2026-10-21"]
        connection.sendall("\r\n".join([*lines, f"content-length: {len(data)}", "", ""]).encode() + data)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 OK")
    line = running.wait_for_line(lambda line: line["body_sha256"] == sha256_json(body))
    assert line["completed"] is False


# --- the process --------------------------------------------------------------------------------------------------


def test_the_server_imports_nothing_heavy() -> None:
    code = (
        "import sys, mnemosyne.demo.server;"
        "print([name for name in ('pydantic', 'anthropic', 'asyncio', 'mnemosyne._core') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-S", "-c", code],
        env={"PYTHONPATH": str(PACKAGES)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_a_port_or_log_that_cannot_be_had_is_one_clear_error(
    running: Running, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert server_module.main(["--port", str(running.port), "--log", str(tmp_path / "log")]) == 3
    assert server_module.main(["--log", str(tmp_path / "absent" / "log")]) == 3
    assert capsys.readouterr().err.count("error[MN-0211]") == 2


async def test_kill_2_the_guard_starts_the_server_and_ends_it_with_itself(tmp_path: Path) -> None:
    guard = Guard.start(lock=tmp_path / "lock")
    try:
        url, _ = await start_server(guard, log=tmp_path / "log.jsonl")
        port = int(url.rsplit(":", 1)[1])
        assert url == f"http://127.0.0.1:{port}"
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    finally:
        await guard.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
