"""Shell completion, asked of a real shell."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from mnemosyne.cli import main


def script(capsys: pytest.CaptureFixture[str], shell: str) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


def completed(capsys: pytest.CaptureFixture[str], *words: str) -> set[str]:
    """What bash offers for the last of ``words``."""
    ask = f"""
{script(capsys, "bash")}
COMP_WORDS=({" ".join(f"'{word}'" for word in words)}); COMP_CWORD={len(words) - 1}; COMP_LINE="{" ".join(words)}"
function=$(complete -p mnemosyne | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
$function mnemosyne '{words[-1]}' '{words[-2]}'
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    asked = subprocess.run(["bash", "--norc", "-c", ask], capture_output=True, text=True, timeout=30, check=True)
    return set(asked.stdout.split())


def test_bash_completes_verbs_flags_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"resume", "retry", "runs"} >= completed(capsys, "mnemosyne", "r") >= {"resume", "runs"}
    assert "--budget-usd" in completed(capsys, "mnemosyne", "orchestrate", "--budget-u")
    assert completed(capsys, "mnemosyne", "completion", "b") == {"bash"}


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_take_their_scripts(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    text = script(capsys, shell)
    assert "orchestrate" in text
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    checked = subprocess.run([program, "-n"], input=text, capture_output=True, text=True, timeout=30, check=False)
    assert checked.returncode == 0, checked.stderr


def test_a_shell_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 2
    assert "error[MN-0115]" in capsys.readouterr().err
