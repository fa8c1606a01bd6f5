"""What the README shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command import SECONDS, Sandbox

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
EMBED = ROOT / "rust" / "mnemosyne" / "examples" / "embed.rs"


def block(language: str) -> str:
    """The only block of a language in the README."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"{len(found)} {language} blocks"
    return str(found[0])


def test_the_python_example_runs_as_printed(sandbox: Sandbox) -> None:
    ran = sandbox.run_python(block("python"), SECONDS)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1].startswith("done")
    sandbox.workspace = sandbox.root / "shop-project"
    assert sandbox.sample_tests().returncode == 0


def test_the_rust_example_is_the_file_that_make_embed_runs() -> None:
    if not EMBED.exists():
        pytest.skip("rust/mnemosyne/examples/embed.rs does not exist")
    shown = block("rust").strip()
    assert "ClaudeAgentBridge::spawn" in shown
    assert "".join(shown.split()) in "".join(EMBED.read_text("utf-8").split())  # it is indented there


def test_every_command_of_the_readme_exists(sandbox: Sandbox) -> None:
    named = set(re.findall(r"^mnemosyne (demo serve|[a-z]+)", README, re.MULTILINE))
    assert {"orchestrate", "resume", "runs", "show", "cancel"} <= named
    for verb in named:
        assert sandbox.run(*verb.split(), "--help").exit_code == 0, verb


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)) <= targets
