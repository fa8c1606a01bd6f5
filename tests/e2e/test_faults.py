"""A run that meets faults on purpose ends as well as one that meets none."""

from __future__ import annotations

import json
from collections import Counter

from command import Sandbox


def test_a_run_recovers_from_the_faults_of_a_script(sandbox: Sandbox) -> None:
    script = sandbox.root / "faults.json"
    faults = [
        {"fault": "status", "status": 529, "phase": "prompt_to_spec", "nth": 1},
        {"fault": "stream_error", "role": "executor", "nth": 2},
        {"fault": "cut", "after_bytes": -1, "role": "reviewer", "nth": 1},
    ]
    script.write_text(json.dumps({"faults": faults}))
    done = sandbox.demo("--faults", str(script))
    assert (done.exit_code, done.summary["state"]) == (0, "done"), done.err
    asked = Counter(event["data"].get("request_sha256") for event in done.events if event["kind"] == "step_started")
    del asked[None]
    assert sorted(asked.values())[-4:] == [1, 2, 2, 2], "each fault is met once, and its request is sent once more"
    assert sandbox.sample_tests().returncode == 0
