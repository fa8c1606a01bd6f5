"""The guard: limits, cancellation, scrubbing, and KILL-2, with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from mnemosyne import guard as guard_module
from mnemosyne.errors import EnvironmentProblem
from mnemosyne.guard import Guard, base_environment, wait_until_gone

# A process with a session of its own whose parents are gone: what `daemon(3)` makes. It writes its process id.
DAEMON = """
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
with open(sys.argv[1] + ".new", "w") as file: file.write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(300)
"""

OWNER = """
import asyncio, sys
from pathlib import Path
from mnemosyne.guard import Guard

async def main():
    guard = Guard.start(lock=Path(sys.argv[1]), interpreter=sys.executable)
    print(guard.pid, flush=True)
    await guard.run([sys.executable, "-c", sys.argv[3] + "", sys.argv[2]], cwd=Path("/"), timeout=300)

asyncio.run(main())
"""


@pytest.fixture
async def guard(tmp_path: Path) -> AsyncIterator[Guard]:
    started = Guard.start(lock=tmp_path / "guard.lock", interpreter=sys.executable)
    yield started
    await started.close()


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if f"\nPPid:\t{pid}\n" in path.read_text():
                found.append(int(path.parent.name))
    return found


async def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> float:
    """Poll until ``condition`` holds; return how long that took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "the condition did not become true in time"
        await asyncio.sleep(0.005)
    return time.monotonic() - started


async def read_pid(path: Path) -> int:
    await eventually(path.exists, 10.0)
    return int(path.read_text())


def daemon(path: Path, *, then: str = "") -> list[str]:
    """A command that leaves a daemon behind; it ends at once unless ``then`` says what it does next."""
    command = 'exec "$0" -c "$1" "$2"' if not then else f'"$0" -c "$1" "$2"; {then}'
    return ["/bin/sh", "-c", command, sys.executable, DAEMON, str(path)]


class Owner:
    """A process that owns a guard, whose command has started a daemon and is still running."""

    def __init__(self, folder: Path) -> None:
        self.lock, self.pid_file = folder / "guard.lock", folder / "daemon.pid"
        program = DAEMON.replace("if os.fork(): os._exit(0)", "if os.fork(): time.sleep(300)", 1)
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(self.lock), str(self.pid_file), program],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.guard_pid = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return Owner(tmp_path)


async def test_kill_2_a_daemon_is_gone_within_two_seconds_after_kill_9_of_the_owner(owner: Owner) -> None:
    pid = await read_pid(owner.pid_file)
    assert alive(pid)
    owner.kill()
    assert await eventually(lambda: not alive(pid)) < 2.0
    await eventually(lambda: not alive(owner.guard_pid))


async def test_kill_2_the_lock_is_held_until_the_last_child_is_gone(owner: Owner) -> None:
    pid = await read_pid(owner.pid_file)
    # Stopped, the guard cannot act on the death of its owner yet: child and lock must stay together.
    os.kill(owner.guard_pid, signal.SIGSTOP)
    owner.kill()
    assert not await wait_until_gone(owner.lock, 0.2)
    assert alive(pid)
    os.kill(owner.guard_pid, signal.SIGCONT)
    assert await wait_until_gone(owner.lock, 5.0)
    assert not alive(pid)


async def test_kill_2_holds_when_the_guard_itself_is_killed(owner: Owner) -> None:
    pid = await read_pid(owner.pid_file)
    (keeper,) = children_of(owner.guard_pid)
    # Stopped, it cannot act yet; the lock must be its own too, or it would be free while the daemon lives.
    os.kill(keeper, signal.SIGSTOP)
    os.kill(owner.guard_pid, signal.SIGKILL)
    assert not await wait_until_gone(owner.lock, 0.2)
    assert alive(pid)
    os.kill(keeper, signal.SIGCONT)
    assert await wait_until_gone(owner.lock, 5.0)
    assert not alive(pid)
    owner.process.wait(10)
    owner.kill()


async def test_kill_2_the_guard_ends_on_sigterm_with_all_its_children(owner: Owner) -> None:
    pid = await read_pid(owner.pid_file)
    os.kill(owner.guard_pid, signal.SIGTERM)
    assert await wait_until_gone(owner.lock, 5.0)
    assert not alive(pid)
    owner.process.wait(10)
    owner.kill()


async def test_a_lock_that_nobody_made_is_free(tmp_path: Path) -> None:
    assert await wait_until_gone(tmp_path / "never", 0.0)


async def test_two_guards_cannot_hold_one_lock(guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentProblem, match="not available") as caught:
        await asyncio.to_thread(Guard.start, lock=tmp_path / "guard.lock", interpreter=sys.executable)
    assert caught.value.code == "MN-0208"
    assert "guard.lock" in caught.value.reason
    assert (await guard.run(["true"], cwd=tmp_path)).exit_code == 0


async def test_a_command_gives_its_exit_code_and_both_outputs(guard: Guard, tmp_path: Path) -> None:
    result = await guard.run(["/bin/sh", "-c", "pwd; echo bad >&2; exit 7"], cwd=tmp_path)
    assert (result.exit_code, result.stdout, result.stderr) == (7, f"{tmp_path}\n".encode(), b"bad\n")
    assert result.output == f"{tmp_path}\nbad"
    assert not result.timed_out
    assert not result.truncated


async def test_merged_output_keeps_the_order_of_writing(guard: Guard, tmp_path: Path) -> None:
    result = await guard.run(["/bin/sh", "-c", "echo 1; echo 2 >&2; echo 3"], cwd=tmp_path, merge_output=True)
    assert (result.stdout, result.stderr) == (b"1\n2\n3\n", b"")


async def test_a_command_reads_its_stdin(guard: Guard, tmp_path: Path) -> None:
    text = os.urandom(3_000_000)
    result = await guard.run(["cat"], cwd=tmp_path, stdin=text, output_limit=10_000_000)
    assert result.stdout == text


async def test_a_command_that_does_not_read_its_stdin_still_ends(guard: Guard, tmp_path: Path) -> None:
    assert (await guard.run(["true"], cwd=tmp_path, stdin=bytes(3_000_000))).exit_code == 0


async def test_a_death_by_its_own_signal_is_a_negative_exit_code(guard: Guard, tmp_path: Path) -> None:
    assert (await guard.run(["/bin/sh", "-c", "kill -SEGV $$"], cwd=tmp_path)).exit_code == -signal.SIGSEGV


FORGE = """
import os, signal, sys, time
exited_with_zero = b"\\1\\0\\0\\0\\0\\0\\0\\0"
keeper = os.getppid()
if sys.argv[1] == "kill":
    os.write(os.open(f"/proc/{keeper}/fd/3", os.O_WRONLY), exited_with_zero)
    os.kill(keeper, signal.SIGKILL)
    time.sleep(10)
elif os.fork():
    time.sleep(0.3)
else:
    while True:
        os.write(os.open(f"/proc/{keeper}/fd/3", os.O_WRONLY), exited_with_zero)
        time.sleep(0.001)
sys.exit(1)
"""


@pytest.mark.parametrize("way", ["kill", "overwrite"])
async def test_truth_1_a_command_cannot_write_an_exit_code_of_its_own(guard: Guard, tmp_path: Path, way: str) -> None:
    result = await guard.run([sys.executable, "-c", FORGE, way], cwd=tmp_path, timeout=20)
    assert result.exit_code is None
    assert not result.timed_out


async def test_a_program_that_does_not_exist_says_so(guard: Guard, tmp_path: Path) -> None:
    result = await guard.run(["no-such-program"], cwd=tmp_path)
    assert result.exit_code == 127
    assert "no-such-program" in result.output
    assert (await guard.run(["true"], cwd=tmp_path / "missing")).exit_code == 127


async def test_the_time_limit_ends_the_command_and_its_daemon(guard: Guard, tmp_path: Path) -> None:
    started = time.monotonic()
    result = await guard.run(daemon(tmp_path / "pid", then="sleep 300"), cwd=tmp_path, timeout=0.7)
    assert result.timed_out
    assert result.exit_code is None
    assert 0.7 <= time.monotonic() - started < 3.0
    assert not alive(await read_pid(tmp_path / "pid"))


async def test_what_a_command_leaves_behind_ends_with_it(guard: Guard, tmp_path: Path) -> None:
    wait_for_daemon = f"while ! test -e {tmp_path}/pid; do sleep 0.01; done"
    result = await guard.run(daemon(tmp_path / "pid", then=wait_for_daemon), cwd=tmp_path)
    assert result.exit_code == 0
    assert not alive(await read_pid(tmp_path / "pid"))


async def test_the_output_limit_keeps_the_beginning_and_the_end(guard: Guard, tmp_path: Path) -> None:
    result = await guard.run(
        ["/bin/sh", "-c", "echo first; yes | head -c 5000000; echo last"], cwd=tmp_path, output_limit=1000
    )
    assert result.exit_code == 0
    assert result.truncated
    assert result.stdout.startswith(b"first\ny\n")
    assert result.stdout.endswith(b"y\nlast\n")
    assert b"bytes left out" in result.stdout
    assert len(result.stdout) < 1100


async def test_endless_output_meets_the_time_limit(guard: Guard, tmp_path: Path) -> None:
    result = await guard.run(["yes"], cwd=tmp_path, timeout=0.3, output_limit=1000)
    assert result.timed_out
    assert result.truncated


async def test_kill_1_cancelling_ends_the_group_and_its_daemon(guard: Guard, tmp_path: Path) -> None:
    task = asyncio.create_task(
        guard.run(daemon(tmp_path / "pid", then=f"sleep 300 & echo $! > {tmp_path}/group; wait"), cwd=tmp_path)
    )
    pid = await read_pid(tmp_path / "pid")
    await eventually(lambda: (tmp_path / "group").exists() and (tmp_path / "group").read_text().endswith("\n"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(pid)
    assert not alive(int((tmp_path / "group").read_text()))


async def test_kill_ends_the_commands_of_one_tag_only(guard: Guard, tmp_path: Path) -> None:
    concerned = [
        asyncio.create_task(guard.run(daemon(tmp_path / f"old{n}", then="sleep 300"), cwd=tmp_path, tag="item@1"))
        for n in range(2)
    ]
    other = asyncio.create_task(guard.run(["/bin/sh", "-c", "cat; exit 3"], cwd=tmp_path, stdin=b"x", tag="item@2"))
    pids = [await read_pid(tmp_path / f"old{n}") for n in range(2)]
    await guard.kill("item@1")
    assert not any(alive(pid) for pid in pids)
    assert [(await task).exit_code for task in concerned] == [None, None]
    assert (await other).exit_code == 3
    await guard.kill("nobody")


async def test_secret_1_a_command_does_not_see_our_keys(
    guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-hush-hush")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush-too")
    fresh = Guard.start(interpreter=sys.executable)
    for one in (guard, fresh):
        look = f"env; cat /proc/$PPID/environ /proc/{one.pid}/environ /proc/{one.pid}/cmdline"
        result = await one.run(["/bin/sh", "-c", look], cwd=tmp_path)
        assert result.exit_code == 0
        assert "hush" not in result.output
        assert f"HOME={os.environ['HOME']}\n" not in result.output
    await fresh.close()


async def test_commands_find_the_configured_python_first(guard: Guard, tmp_path: Path) -> None:
    result = await guard.run(["python3", "-c", "import sys; print(sys.executable)"], cwd=tmp_path)
    assert os.path.dirname(result.output) == os.path.dirname(sys.executable)
    assert base_environment(sys.executable)["PYTHONDONTWRITEBYTECODE"] == "1"


async def test_home_and_temporary_files_are_thrown_away_with_the_guard(tmp_path: Path) -> None:
    guard = Guard.start(interpreter=sys.executable)
    result = await guard.run(["/bin/sh", "-c", 'echo "$HOME"; touch "$HOME/x" "$TMPDIR/x"'], cwd=tmp_path)
    home = Path(result.output)
    assert (home / "x").exists()
    await guard.close()
    assert not home.parent.exists()


async def test_the_guard_serves_two_event_loops(guard: Guard, tmp_path: Path) -> None:
    def other_loop() -> list[int | None]:
        async def many() -> list[int | None]:
            results = await asyncio.gather(*(guard.run(["sh", "-c", f"exit {n}"], cwd=tmp_path) for n in range(8)))
            return [result.exit_code for result in results]

        return asyncio.run(many())

    here = asyncio.gather(*(guard.run(["sh", "-c", f"exit {20 + n}"], cwd=tmp_path) for n in range(8)))
    there = asyncio.get_running_loop().run_in_executor(None, other_loop)
    assert [result.exit_code for result in await here] == list(range(20, 28))
    assert await there == list(range(8))


async def test_spawn_gives_the_first_line_and_stop_ends_it(guard: Guard, tmp_path: Path) -> None:
    spawned = await guard.spawn(["/bin/sh", "-c", "echo $$; echo more; sleep 300"], cwd=tmp_path)
    assert spawned.first_line == str(spawned.pid)
    assert alive(spawned.pid)
    # From another loop, because who started a server is not always who stops it.
    await asyncio.to_thread(asyncio.run, spawned.stop())
    assert not alive(spawned.pid)
    await spawned.stop()


async def test_spawn_reports_a_program_that_ends_before_its_first_line(guard: Guard, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        await guard.spawn(["/bin/sh", "-c", "echo no port free >&2; exit 1"], cwd=tmp_path)
    assert caught.value.reason == "no port free"


async def test_closing_ends_what_runs_and_says_so(tmp_path: Path) -> None:
    guard = Guard.start(interpreter=sys.executable)
    task = asyncio.create_task(guard.run(daemon(tmp_path / "pid", then="sleep 300"), cwd=tmp_path))
    pid = await read_pid(tmp_path / "pid")
    await guard.close()
    assert not alive(pid)
    assert not alive(guard.pid)
    assert not guard.alive
    with pytest.raises(EnvironmentProblem, match="not available"):
        await task
    with pytest.raises(EnvironmentProblem, match="not available"):
        await guard.run(["true"], cwd=tmp_path)
    await guard.close()


async def test_the_guard_stays_small_and_single_threaded(guard: Guard, tmp_path: Path) -> None:
    await guard.run(["true"], cwd=tmp_path)
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{guard.pid}/status").read_text().splitlines() if ":" in line
    )
    assert status["Threads"].strip() == "1"
    assert int(status["VmRSS"].split()[0]) < 20_000


def test_the_shared_guard_is_one_and_starts_again_after_it_died(tmp_path: Path) -> None:
    guard_module.configure(interpreter=sys.executable)
    found: list[Guard] = []
    threads = [threading.Thread(target=lambda: found.append(guard_module.shared())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    found[0].close_now()
    second = guard_module.shared()
    assert second is not found[0]
    assert second.alive
    second.close_now()
