"""The window held to its own document by a tool that others wrote: it makes requests up, good and bad ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from browsing import OpenWindow
from command import DemoServer, Sandbox, until
from test_window import DOCUMENT, ECHO

EXAMPLES = os.environ.get("MNEMOSYNE_EXAMPLES", "10")
"""Requests per operation and phase; `make soak-window` asks for many."""
SETTINGS = """
base-url = "{address}"
headers = {{ Authorization = "Bearer ${{MNEMOSYNE_TEST_TOKEN}}" }}
request-timeout = 20.0
continue-on-failure = true

# A stream that is followed has no end. And a header that nobody knows is no reason to refuse one.
[[operations]]
include-path = "/events"
parameters = {{ "query.follow" = "false" }}
checks.negative_data_rejection.enabled = false
"""


def test_no_request_is_answered_by_an_error_of_ours_or_by_what_the_document_does_not_say(
    sandbox: Sandbox, server: DemoServer
) -> None:
    (sandbox.root / "echo.py").write_text(ECHO)
    flags = ("--model", "demo", "--base-url", server.url, "--agent", "executor=echo:Echo")
    window = OpenWindow.of(sandbox.start("serve", "--port", "0", *flags, "--json"))
    item = {"id": "first", "description": "hello", "phase": "plan_to_artifacts", "role": "executor"}
    assert window.post("/items", {"item": item}).status == 201
    until(lambda: window.ask("GET", "/ready").status == 200, "every role has an agent")
    (sandbox.root / "schemathesis.toml").write_text(SETTINGS.format(address=window.address))
    document = json.dumps(DOCUMENT)
    (sandbox.root / "openapi.json").write_text(document)
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            *("--config-file", "schemathesis.toml", "run", "openapi.json"),
            # What the form allows and the store refuses (a workspace that is not there) is refused.
            *("--exclude-checks", "positive_data_acceptance"),
            *("--max-examples", EXAMPLES, "--seed", "7", "--no-color"),
        ],
        cwd=sandbox.root,
        env=sandbox.environment(MNEMOSYNE_TEST_TOKEN=window.token),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    assert re.search(r"(\d{3,}) generated, \1 passed", done.stdout), done.stdout
    assert window.ask("GET", "/health").status == 200
