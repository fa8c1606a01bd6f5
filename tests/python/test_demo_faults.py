"""Fault scripts: each fault is really there on the wire, where and as often as its script says, and never otherwise."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mnemosyne.demo.server as server_module
import pytest
from mnemosyne.cli import main
from mnemosyne.demo import faults
from mnemosyne.errors import InvalidInput, MnemosyneError
from mnemosyne.llm import Client, Turn

Body = dict[str, Any]

PACKAGES = Path(server_module.__file__).parents[2]
TOOL_NAMES = ("read_file", "write_file", "edit_file", "list_files", "search", "run_command")
TOOLS = [{"name": name, "input_schema": {"type": "object", "properties": {}}} for name in TOOL_NAMES]
TASK = (
    '<task id="t1">\nFinish it\n</task>\n<scope>\na.py\n</scope>\n<requirements>\n[]\n</requirements>\n'
    "<acceptance>\npython3 -m unittest test_a\n</acceptance>\n<context>\n</context>"
)
SPEC = {"title": "Spec", "type": "object", "properties": {}, "additionalProperties": False}
GREETING: Body = {"model": "demo", "max_tokens": 1000, "messages": [{"role": "user", "content": "hello"}]}
WORK: Body = GREETING | {"max_tokens": 4000, "messages": [{"role": "user", "content": TASK}], "tools": TOOLS}
PLANNING: Body = GREETING | {
    "messages": [{"role": "user", "content": "<request>\nhello\n</request>"}],
    "output_config": {"format": {"type": "json_schema", "schema": SPEC}},
}
HEADERS = {"x-api-key": "k", "anthropic-version": "2026-10-21"}


class Faulty:
    """A demo server with a fault script, in its own process."""

    def __init__(self, folder: Path, *entries: Body, seed: int = 0) -> None:
        script, self._log = folder / "faults.json", folder / "requests.jsonl"
        script.write_text(json.dumps({"seed": seed, "faults": list(entries)}))
        arguments = [sys.executable, "-P", "-S", "-m", "mnemosyne.demo.server"]
        arguments += ["--log", str(self._log), "--faults", str(script)]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(PACKAGES)})
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.port = int(self.url.rsplit(":", 1)[1])

    def send(self, body: Body, path: str = "/v1/messages") -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("POST", path, json.dumps(body), HEADERS)
        return connection.getresponse()

    def statuses(self, *bodies: Body, path: str = "/v1/messages") -> list[int]:
        found = []
        for body in bodies:
            with contextlib.closing(self.send(body, path)) as response:
                response.read()
                found.append(response.status)
        return found

    def lines(self, number: int) -> list[Body]:
        """The log, once it has so many lines, by status: a line can come after that of the next answer."""
        deadline = time.monotonic() + 10
        while len(lines := self._log.read_text().splitlines()) < number:
            assert time.monotonic() < deadline, f"only {len(lines)} lines"
            time.sleep(0.01)
        return sorted((json.loads(line) for line in lines), key=lambda line: (line["status"], line["completed"]))


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Callable[..., Faulty]]:
    running: list[Faulty] = []

    def start(*entries: Body, seed: int = 0) -> Faulty:
        (folder := tmp_path / str(len(running))).mkdir()
        running.append(Faulty(folder, *entries, seed=seed))
        return running[-1]

    yield start
    for server in running:
        server.process.kill()
        server.process.wait()


def events(text: bytes) -> list[tuple[str, str]]:
    return re.findall(r"event: (.*)\ndata: (.*)\n\n", text.decode())


def streamed(body: Body) -> Body:
    return body | {"stream": True}


# --- each fault, on the wire --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 413, 429, 500, 529])
def test_a_status_comes_with_the_body_of_the_api(faulty: Callable[..., Faulty], status: int) -> None:
    server = faulty({"fault": "status", "status": status, "to": 1})
    response = server.send(GREETING)
    body = json.loads(response.read())
    assert response.status == status
    assert (body["type"], body["request_id"]) == ("error", response.getheader("request-id"))
    assert body["error"]["type"].endswith(("_error", "request_too_large"))
    assert server.statuses(GREETING) == [200]
    assert [(line["status"], line["fault"]) for line in server.lines(2)] == [(200, None), (status, "status")]


def test_a_rate_limit_says_when_to_come_back(faulty: Callable[..., Faulty]) -> None:
    server = faulty({"fault": "status", "status": 429, "retry_after": 3600, "reset_after": 60, "message": "Slower."})
    response = server.send(GREETING)
    assert json.loads(response.read())["error"] == {"type": "rate_limit_error", "message": "Slower."}
    assert response.getheader("retry-after") == "3600"
    reset = response.getheader("anthropic-ratelimit-requests-reset")
    assert reset is not None
    # The date has whole seconds, so up to one second is lost.
    assert 50 < _epoch(reset) - time.time() <= 60
    assert response.getheader("anthropic-ratelimit-tokens-remaining") == "0"


def _epoch(stamp: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(stamp).timestamp()


def test_an_error_event_ends_a_stream_that_began_well(faulty: Callable[..., Faulty]) -> None:
    server = faulty({"fault": "stream_error", "after_events": 2})
    response = server.send(streamed(GREETING))
    assert response.status == 200
    seen = events(response.read())
    assert [name for name, _ in seen] == ["message_start", "ping", "error"]
    assert json.loads(seen[-1][1])["error"]["type"] == "overloaded_error"


def test_a_stall_sends_so_many_bytes_and_then_nothing_until_the_client_goes(faulty: Callable[..., Faulty]) -> None:
    server = faulty({"fault": "stall", "after_bytes": 100})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=0.5)
    connection.request("POST", "/v1/messages", json.dumps(streamed(GREETING)), HEADERS)
    response = connection.getresponse()
    assert len(response.read(100)) == 100
    with pytest.raises(TimeoutError):
        response.read(1)
    response.close()
    connection.close()
    (line,) = server.lines(1)
    assert (line["status"], line["completed"], line["fault"]) == (200, False, "stall")


def test_a_hanging_request_gets_not_even_a_status(faulty: Callable[..., Faulty]) -> None:
    server = faulty({"fault": "hang"})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=0.5)
    connection.request("POST", "/v1/messages", json.dumps(GREETING), HEADERS)
    with pytest.raises(TimeoutError):
        connection.getresponse()
    connection.close()
    assert [(line["status"], line["fault"]) for line in server.lines(1)] == [(0, "hang")]


@pytest.mark.parametrize("after_bytes", [0, 1, 150, -1])
def test_a_cut_stream_ends_at_the_byte_that_was_named(faulty: Callable[..., Faulty], after_bytes: int) -> None:
    server = faulty({"fault": "cut", "after_bytes": after_bytes, "to": 1})
    with pytest.raises(http.client.IncompleteRead) as cut:
        server.send(streamed(GREETING)).read()
    whole = server.send(streamed(GREETING)).read()
    assert whole.startswith(cut.value.partial)
    assert len(cut.value.partial) == (after_bytes if after_bytes >= 0 else len(whole) + after_bytes)
    assert [line["completed"] for line in server.lines(2)] == [False, True]


def test_a_clean_cut_looks_like_a_whole_answer_without_its_end(faulty: Callable[..., Faulty]) -> None:
    server = faulty({"fault": "cut", "after_bytes": -1, "ending": "clean"})
    seen = server.send(streamed(GREETING)).read()
    assert events(seen)[-1][0] == "message_delta"


def test_a_cut_by_reset_is_a_reset_for_the_client(faulty: Callable[..., Faulty]) -> None:
    server = faulty({"fault": "cut", "after_bytes": 10, "ending": "reset"})
    with pytest.raises(ConnectionResetError):
        server.send(streamed(GREETING)).read()


def test_a_cut_answer_in_one_piece_is_shorter_than_it_said(faulty: Callable[..., Faulty]) -> None:
    with pytest.raises(http.client.IncompleteRead) as cut:
        faulty({"fault": "cut", "after_bytes": 7}).send(GREETING).read()
    assert len(cut.value.partial) == 7


def test_a_reset_comes_before_any_byte_of_an_answer(faulty: Callable[..., Faulty]) -> None:
    server = faulty({"fault": "reset", "to": 1})
    with pytest.raises(ConnectionResetError):
        server.send(GREETING)
    assert server.statuses(GREETING) == [200]
    assert [(line["status"], line["completed"]) for line in server.lines(2)] == [(0, False), (200, True)]


def test_one_malformed_event_stands_between_sound_ones(faulty: Callable[..., Faulty]) -> None:
    seen = events(faulty({"fault": "malformed", "after_events": 2}).send(streamed(GREETING)).read())
    sound = [_is_json(data) for _, data in seen]
    assert sound.index(False) == 2
    assert sound.count(False) == 1
    assert seen[-1][0] == "message_stop"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def test_a_slow_answer_is_whole_and_takes_its_time(faulty: Callable[..., Faulty]) -> None:
    server = faulty({"fault": "slow", "bytes_per_second": 4000, "to": 1})
    began = time.monotonic()
    slow = server.send(streamed(GREETING)).read()
    # A lower bound, which no load on the machine can break: the server pauses by its own clock.
    assert time.monotonic() - began >= len(slow) / 4000 * 0.9
    assert slow == server.send(streamed(GREETING)).read()


def test_a_page_is_a_200_that_is_no_message(faulty: Callable[..., Faulty]) -> None:
    response = faulty({"fault": "page"}).send(streamed(GREETING))
    assert (response.status, response.getheader("content-type")) == (200, "text/html")
    assert b"<title>" in response.read()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("refusal", "refusal"),
        ("max_tokens", "max_tokens"),
        ("context_window_exceeded", "model_context_window_exceeded"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_reason_is_told_in_both_forms_of_an_answer(
    faulty: Callable[..., Faulty], fault: str, reason: str, stream: bool
) -> None:
    text = faulty({"fault": fault}).send(WORK | {"stream": stream}).read()
    if not stream:
        message = json.loads(text)
        assert message["stop_reason"] == reason
        assert [block["input"] for block in message["content"][-1:]] == ([] if fault == "refusal" else [{}])
        return
    told = [json.loads(data) for _, data in events(text)]
    assert told[-2]["delta"]["stop_reason"] == reason
    if fault == "refusal":
        assert told[-2]["delta"]["stop_details"]["type"] == "refusal"
        assert not any(event["type"] == "content_block_start" for event in told)
    if fault == "max_tokens":
        assert told[-2]["usage"]["output_tokens"] == WORK["max_tokens"]
        last = max(event["index"] for event in told if "index" in event)
        parts = [event["delta"]["partial_json"] for event in told if event.get("index") == last and "delta" in event]
        assert not _is_json("".join(parts)), "the input of the last tool is meant to be cut in the middle"


# --- which requests -----------------------------------------------------------------------------------------------


def test_a_range_counts_only_the_requests_that_it_is_for(faulty: Callable[..., Faulty]) -> None:
    server = faulty({"fault": "status", "status": 529, "role": "executor", "from": 2, "to": 3})
    assert server.statuses(WORK, GREETING, WORK, GREETING, WORK, WORK) == [200, 200, 529, 200, 529, 200]


def test_requests_are_told_apart_by_role_phase_and_text(faulty: Callable[..., Faulty]) -> None:
    server = faulty(
        {"fault": "status", "status": 500, "phase": "prompt_to_spec"},
        {"fault": "status", "status": 429, "role": "executor", "contains": "Finish it"},
        {"fault": "status", "status": 529, "contains": "hello"},
    )
    other = WORK | {"messages": [{"role": "user", "content": TASK.replace("Finish it", "Begin it")}]}
    assert server.statuses(PLANNING, WORK, other, GREETING) == [500, 429, 200, 529]


def test_only_messages_are_meant_unless_the_path_says_so(faulty: Callable[..., Faulty]) -> None:
    counting = {key: value for key, value in GREETING.items() if key != "max_tokens"}
    server = faulty({"fault": "status", "status": 529, "to": 1})
    assert server.statuses(counting, path="/v1/messages/count_tokens") == [200]
    assert server.statuses(GREETING) == [529]
    server = faulty({"fault": "status", "status": 404, "path": "/v1/messages/count_tokens"})
    assert server.statuses(counting, path="/v1/messages/count_tokens") == [404]
    assert server.statuses(GREETING) == [200]


def test_of_two_faults_that_are_due_the_first_is_given_and_both_count(faulty: Callable[..., Faulty]) -> None:
    server = faulty({"fault": "status", "status": 500, "nth": 1}, {"fault": "status", "status": 529, "to": 2})
    assert server.statuses(GREETING, GREETING, GREETING) == [500, 529, 200]


def test_a_probability_draws_the_same_faults_for_the_same_seed(faulty: Callable[..., Faulty]) -> None:
    drawn = [
        faulty({"fault": "status", "status": 529, "probability": 0.5}, seed=seed).statuses(*[GREETING] * 12)
        for seed in (7, 7, 8)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) == {200, 529}


def test_a_fault_of_a_stream_waits_for_a_stream(faulty: Callable[..., Faulty]) -> None:
    server = faulty({"fault": "stream_error", "nth": 1})
    assert server.statuses(GREETING) == [200]
    assert events(server.send(streamed(GREETING)).read())[-1][0] == "error"


# --- the script ---------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[object, str]] = {
    "no object": ([], "a JSON object"),
    "no faults": ({"faults": []}, "faults"),
    "unknown key": ({"faults": [{"fault": "reset"}], "sed": 1}, "sed: unknown key"),
    "seed": ({"faults": [{"fault": "reset"}], "seed": True}, "seed"),
    "unknown fault": ({"faults": [{"fault": "earthquake"}]}, "faults.0.fault"),
    "no fault": ({"faults": [{"fault": "reset"}, {}]}, "faults.1.fault"),
    "key of another fault": ({"faults": [{"fault": "reset", "after_bytes": 1}]}, "faults.0.after_bytes: unknown key"),
    "no status": ({"faults": [{"fault": "status"}]}, "faults.0.status: this key is missing"),
    "unknown status": ({"faults": [{"fault": "status", "status": 418}]}, "faults.0.status"),
    "status is text": ({"faults": [{"fault": "status", "status": "529"}]}, "faults.0.status"),
    "negative wait": ({"faults": [{"fault": "status", "status": 429, "retry_after": -1}]}, "retry_after"),
    "endless wait": ({"faults": [{"fault": "status", "status": 429, "retry_after": float("inf")}]}, "retry_after"),
    "nth zero": ({"faults": [{"fault": "reset", "nth": 0}]}, "faults.0.nth"),
    "nth and to": ({"faults": [{"fault": "reset", "nth": 1, "to": 2}]}, "excludes"),
    "to before from": ({"faults": [{"fault": "reset", "from": 3, "to": 2}]}, "less than from"),
    "role": ({"faults": [{"fault": "reset", "role": "optimizer"}]}, "faults.0.role"),
    "probability": ({"faults": [{"fault": "reset", "probability": 1.5}]}, "faults.0.probability"),
    "pace": ({"faults": [{"fault": "slow", "bytes_per_second": 0}]}, "bytes_per_second"),
    "ending": ({"faults": [{"fault": "cut", "ending": "sudden"}]}, "faults.0.ending"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_fault_script_is_refused_with_the_place(tmp_path: Path, name: str) -> None:
    script, words = REFUSED[name]
    (tmp_path / "faults.json").write_text(json.dumps(script))
    with pytest.raises(InvalidInput, match="is not a fault script") as refused:
        faults.load(tmp_path / "faults.json")
    assert refused.value.code == "MN-0161"
    assert words in refused.value.reason


@pytest.mark.parametrize("text", ["", "{", '{"faults": [], "faults": []}', "[" * 100_000])
def test_a_script_that_cannot_be_read_is_bad_input(tmp_path: Path, text: str) -> None:
    (tmp_path / "faults.json").write_text(text)
    with pytest.raises(InvalidInput) as refused:
        faults.load(tmp_path / "faults.json")
    assert refused.value.code == "MN-0160"


@pytest.mark.parametrize("verb", [["demo"], ["demo", "serve"]])
def test_both_verbs_refuse_a_bad_script_before_they_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*verb, "--faults", "absent.json", "--store", str(tmp_path / "store.db")]) == 2
    assert "error[MN-0160]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_faults_are_not_for_the_server_of_somebody_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--faults", "f.json", "--base-url", "http://127.0.0.1:1"]) == 2
    assert "error[MN-0115]" in capsys.readouterr().err


# --- the client of ours -------------------------------------------------------------------------------------------

CLASSES: dict[str, tuple[Body, str]] = {
    "400": ({"fault": "status", "status": 400}, "MN-0408"),
    "401": ({"fault": "status", "status": 401}, "MN-0202"),
    "403": ({"fault": "status", "status": 403}, "MN-0202"),
    "413": ({"fault": "status", "status": 413}, "MN-0408"),
    "429": ({"fault": "status", "status": 429, "retry_after": 7}, "MN-0403"),
    "500": ({"fault": "status", "status": 500}, "MN-0403"),
    "529": ({"fault": "status", "status": 529}, "MN-0403"),
    "overloaded in the stream": ({"fault": "stream_error"}, "MN-0403"),
    "cut": ({"fault": "cut", "after_bytes": 300}, "MN-0404"),
    "cut clean": ({"fault": "cut", "after_bytes": 300, "ending": "clean"}, "MN-0404"),
    "reset in the stream": ({"fault": "cut", "after_bytes": 300, "ending": "reset"}, "MN-0404"),
    "reset": ({"fault": "reset"}, "MN-0403"),
    "malformed": ({"fault": "malformed"}, "MN-0404"),
    "page": ({"fault": "page"}, "MN-0404"),
}


@pytest.mark.parametrize("name", CLASSES)
async def test_the_client_sees_the_class_of_each_fault(faulty: Callable[..., Faulty], name: str) -> None:
    entry, code = CLASSES[name]
    with pytest.raises(MnemosyneError) as seen:
        await _ask(faulty(entry), GREETING)
    assert seen.value.code == code
    if name == "429":
        assert getattr(seen.value, "retry_after", None) == 7


@pytest.mark.parametrize("fault", ["refusal", "max_tokens", "context_window_exceeded"])
async def test_the_client_sees_why_an_answer_stopped(faulty: Callable[..., Faulty], fault: str) -> None:
    turn = await _ask(faulty({"fault": fault}), GREETING)
    assert turn.stop_reason == {"context_window_exceeded": "model_context_window_exceeded"}.get(fault, fault)


async def test_the_client_waits_for_a_slow_answer(faulty: Callable[..., Faulty]) -> None:
    turn = await _ask(faulty({"fault": "slow", "bytes_per_second": 4000}), GREETING)
    assert turn.stop_reason == "refusal"


async def _ask(server: Faulty, body: Body) -> Turn:
    client = Client({"base_url": server.url, "api_key": "k"})
    try:
        return await client.send(streamed(body))
    finally:
        await client.close()
