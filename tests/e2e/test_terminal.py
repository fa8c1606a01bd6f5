"""The live view on a real pseudo-terminal, read through a terminal emulator as a person would see it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyte
import pytest
from command import SECONDS, DemoServer, Sandbox

LINES = 40


@dataclass
class Seen:
    """What was on the terminal."""

    exit_code: int = -1
    raw: bytes = b""
    frames: list[list[str]] = field(default_factory=list)
    """The whole screen, after each piece of output."""

    @property
    def last(self) -> str:
        return "\n".join(self.frames[-1])


def on_a_terminal(
    sandbox: Sandbox,
    *arguments: str,
    columns: int,
    when: Callable[[list[str]], bytes] = lambda _: b"",
    **environment: str,
) -> Seen:
    """Run a command on a terminal; ``when`` may type something once it has seen a screen."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
    screen = pyte.Screen(columns, LINES)
    stream = pyte.ByteStream(screen)
    known = sandbox.environment(TERM="xterm-256color", **environment)
    command = ["setsid", "--ctty", *sandbox.command(*arguments)]  # so that Ctrl-C arrives
    running = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, cwd=sandbox.root, env=known)
    os.close(inner)
    seen, typed, deadline = Seen(), False, time.monotonic() + SECONDS
    try:
        while time.monotonic() < deadline:
            if not select.select([outer], [], [], 0.2)[0]:
                if running.poll() is not None:
                    break
                continue
            try:
                piece = os.read(outer, 65_536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            seen.raw += piece
            stream.feed(piece)
            seen.frames.append([line.rstrip() for line in screen.display])
            if not typed and (keys := when(seen.frames[-1])):
                typed = True
                os.write(outer, keys)
        seen.exit_code = running.wait(20)
    finally:
        running.kill()
        running.wait()
        os.close(outer)
    return seen


def demo(sandbox: Sandbox, server: DemoServer) -> list[str]:
    return ["demo", "--base-url", server.url, "--workspace", str(sandbox.workspace)]


def tree_of(frame: list[str]) -> list[str]:
    return [line for line in frame if line.startswith(("├", "│", "└"))]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, server: DemoServer) -> Iterator[Seen]:
    """A whole demo on 80 columns."""
    sandbox = Sandbox(tmp_path_factory.mktemp("narrow"))
    yield on_a_terminal(sandbox, *demo(sandbox, server), columns=80)
    sandbox.close()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, server: DemoServer) -> Iterator[Seen]:
    """A whole demo on 160 columns, without colours."""
    sandbox = Sandbox(tmp_path_factory.mktemp("wide"))
    yield on_a_terminal(sandbox, *demo(sandbox, server), columns=160, NO_COLOR="1")
    sandbox.close()


@pytest.mark.parametrize("which", ["narrow", "wide"])
def test_the_tree_shows_phases_and_tasks_with_state_attempt_tokens_and_time(
    request: pytest.FixtureRequest, which: str
) -> None:
    seen: Seen = request.getfixturevalue(which)
    assert seen.exit_code == 0, seen.last
    trees = ["\n".join(tree_of(frame)) for frame in seen.frames]
    for expected in (
        r"├─ prompt_to_spec +done +[\d.]+ s +[\d.]+k",
        r"├┬ plan_to_artifacts +running",
        r"│├─ t1 +(optimize|execute|review|accept|rework) +attempt 2",
        r"│├─ t2 +accepted +attempt 1 +[\d.]+ s +[\d.]+k",
        r"│└─ t4 ",
        r"└─ complete +pending",
    ):
        assert any(re.search(expected, tree) for tree in trees), expected
    head = re.compile(r"r-\w+  [\d.]+ s  \S+ tokens  no cost")
    assert len({line for frame in seen.frames for line in frame if head.fullmatch(line)}) > 3, "time goes on"
    assert "Finish shop.r" in "\n".join(trees)
    assert not tree_of(seen.frames[-1]), "at the end it is taken away"
    assert "red -> green" in seen.last, "and the summary takes its place"
    ends = [[line for line in frame if line.startswith("└─ complete")] for frame in seen.frames]
    assert all(len(end) <= 1 for end in ends), "it is drawn once"


def test_the_readme_shows_a_frame_that_is_seen(narrow: Seen) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- live: begin .*?```text\n(.*?)```", readme, re.DOTALL)
    assert shown is not None
    known = {_alike(line) for frame in narrow.frames for line in frame}
    assert [line for line in shown[1].splitlines() if _alike(line) not in known] == []


def _alike(line: str) -> str:
    """A line without its figures, which differ from run to run."""
    return re.sub(r"\s+", " ", re.sub(r"r-\w+|[\d.]+k?", "#", line.replace("…", "")))[:60]


def test_it_does_not_flicker_and_leaves_the_cursor(narrow: Seen) -> None:
    assert b"\x1b[2J" not in narrow.raw, "the screen is never cleared"
    assert b"\x1b[?1049h" not in narrow.raw, "and no other one is used: what was said can be scrolled to"
    assert narrow.raw.rfind(b"\x1b[?25h") > narrow.raw.rfind(b"\x1b[?25l")


def test_no_color_means_none(narrow: Seen, wide: Seen) -> None:
    colour = re.compile(rb"\x1b\[[\d;]*3[0-7]m")
    assert colour.search(narrow.raw)
    assert not colour.search(wide.raw)


def test_ctrl_c_drains_and_gives_the_terminal_back(sandbox: Sandbox, server: DemoServer) -> None:
    def press(frame: list[str]) -> bytes:
        return b"\x03" if any("t1 " in line for line in tree_of(frame)) else b""

    seen = on_a_terminal(sandbox, *demo(sandbox, server), columns=100, when=press)
    assert seen.exit_code == 130, seen.last
    assert "mnemosyne resume r-" in seen.last
    assert not tree_of(seen.frames[-1])
    assert seen.raw.rfind(b"\x1b[?25h") > seen.raw.rfind(b"\x1b[?25l")
