"""Programs that use the bridge in ways that could make it stand still, each in a process with a watchdog.

What a scenario does is in ``hangs/``; here is what must come of it.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from watchdog import Ended, run_in_time

# They wait for a time limit of the bridge for most of their life, so they do it side by side.
WAITING = (
    "exit_while_a_handler_ignores_cancel",
    "exit_while_the_loop_thread_blocks_in_c",
    "interrupt_twice_while_waiting",
    "handler_ignores_cancel",
    "handler_is_cancelled_while_it_cleans_up",
)


@pytest.fixture(scope="module")
def waiting() -> Iterator[dict[str, Future[Ended]]]:
    with ThreadPoolExecutor(len(WAITING)) as pool:
        yield {name: pool.submit(run_in_time, name) for name in WAITING}


def outcome(ended: Ended) -> tuple[int, str]:
    assert "Fatal Python error" not in ended.err, ended.err
    assert "panicked" not in ended.err, ended.err
    return ended.code, ended.out


def end_of(name: str, *arguments: str) -> tuple[int, str]:
    return outcome(run_in_time(name, *arguments))


def test_the_watchdog_ends_a_hang_and_shows_both_stacks() -> None:
    with pytest.raises(AssertionError, match="hang_on_purpose hangs") as caught:
        run_in_time("hang_on_purpose", seconds=3)
    shown = str(caught.value)
    assert "about to hang" in shown
    assert "ending.py" in shown.split("-- Python")[1].split("-- native")[0]
    assert len(shown.split("-- native")[1]) > 50


# The end of the process


def test_importing_everything_and_using_nothing_ends() -> None:
    assert end_of("import_without_use") == (0, "3 modules\n")


def test_a_process_ends_while_an_agent_is_busy() -> None:
    assert end_of("exit_while_busy") == (7, "working True\n")


def test_a_process_ends_while_a_handler_ignores_its_cancellation(waiting: dict[str, Future[Ended]]) -> None:
    assert outcome(waiting["exit_while_a_handler_ignores_cancel"].result()) == (7, "working True\n")


def test_a_process_ends_while_the_loop_thread_blocks_in_c(waiting: dict[str, Future[Ended]]) -> None:
    assert outcome(waiting["exit_while_the_loop_thread_blocks_in_c"].result()) == (7, "working True\n")


def test_a_process_ends_while_a_plain_function_blocks_in_c() -> None:
    assert end_of("exit_while_a_plain_function_blocks_in_c") == (7, "working True\n")


def test_a_process_ends_with_10_000_items_pending() -> None:
    assert end_of("exit_with_10_000_items_pending") == (7, "pending 10000\n")


def test_a_process_ends_that_leaves_its_loop_as_it_is() -> None:
    assert end_of("exit_without_closing_the_loop_that_waits") == (7, "working True\n")


def test_a_process_ends_while_events_are_half_read() -> None:
    assert end_of("exit_while_events_are_half_read") == (7, "following True\n")


def test_a_process_ends_while_a_daemon_thread_waits() -> None:
    assert end_of("exit_while_a_daemon_thread_waits") == (7, "working\n")


def test_a_process_ends_only_after_a_thread_that_still_works() -> None:
    assert end_of("exit_waits_for_a_thread_that_still_works") == (0, "worked 50\n")


def test_the_exit_hook_may_run_more_than_once() -> None:
    assert end_of("exit_hook_runs_twice") == (0, "worked True\nhooks True\n")


def test_after_the_exit_hook_a_new_bridge_is_refused() -> None:
    assert end_of("use_after_the_exit_hook") == (0, "worked True\nrefused\nrefused\n")


def test_after_the_exit_hook_a_bridge_that_was_kept_refuses_work() -> None:
    assert end_of("kept_bridge_after_the_exit_hook") == (0, "refused\n")


def test_a_bridge_may_be_spawned_while_another_shuts_down() -> None:
    assert end_of("spawn_while_another_shuts_down") == (0, "spawned 41\n")


def test_os_exit_in_a_handler_is_the_end_of_the_process() -> None:
    assert end_of("os_exit_in_a_handler") == (9, "leaving\n")


def test_the_interpreter_stops_during_upcalls(tmp_path: Path) -> None:
    assert end_of("stop_of_the_interpreter_during_upcalls", str(tmp_path)) == (7, "calling\n")


def test_the_last_handle_may_be_dropped_by_the_handler_that_it_leads_to() -> None:
    said = "ended with BridgeClosed\ncancelled {'w-1'}\nworked True\n"
    assert end_of("last_handle_dropped_in_a_handler") == (0, said)


# Signals and fork


def test_ctrl_c_cancels_the_work_that_is_waited_for() -> None:
    assert end_of("interrupt_once_while_waiting") == (-2, "cancelled\n")


def test_a_second_ctrl_c_ends_the_wait_for_a_handler_that_ignores_the_first(waiting: dict[str, Future[Ended]]) -> None:
    assert outcome(waiting["interrupt_twice_while_waiting"].result()) == (-2, "first\n")


def test_sigterm_ends_a_busy_process() -> None:
    assert end_of("terminate_while_busy") == (-15, "working True\n")


def test_ctrl_c_reaches_a_main_thread_that_waits_in_rust() -> None:
    ended = run_in_time("interrupt_while_the_exit_waits_in_rust")
    _, said = outcome(ended)
    assert said.startswith("working True\nthrough after 0."), said  # seconds; uninterrupted the wait is five


def test_a_forked_child_that_uses_the_bridge_gets_a_clear_error() -> None:
    code, said = end_of("fork_then_use")
    refused, ended = said.split("child")
    assert (code, ended) == (0, " 0\nparent True\n")
    assert [line.split()[0] for line in refused.splitlines()] == ["send_work", "spawn", "shutdown"]
    assert all("refused" in line and line.endswith("True") for line in refused.splitlines()[:2]), refused


def test_a_forked_child_that_uses_nothing_ends_at_once() -> None:
    assert end_of("fork_then_exit") == (0, "child 5\nparent\n")


def test_fork_in_a_handler_leaves_the_parent_at_work() -> None:
    assert end_of("fork_in_a_handler") == (0, "child [6, 6]\n")


# Handlers that misbehave


@pytest.mark.parametrize(
    "error", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "Odd", "MemoryError", "Unspeakable"]
)
def test_what_a_handler_raises_is_its_own_error_whatever_it_is(error: str) -> None:
    one = f"AgentError from {error}\nneighbour True\n"
    assert end_of("raised_by_a_handler", error) == (0, 3 * one)


@pytest.mark.parametrize(
    ("error", "cause"),
    [("StopIteration", "RuntimeError"), ("CancelledError", "AgentError"), ("RecursionError", "RecursionError")],
)
def test_what_would_end_a_coroutine_quietly_is_an_error_too(error: str, cause: str) -> None:
    one = f"AgentError from {cause}\nneighbour True\n"
    assert end_of("raised_by_a_handler", error) == (0, 3 * one)


def test_a_system_exit_in_a_callback_of_a_handler_ends_nothing() -> None:
    assert end_of("system_exit_in_a_callback_of_a_handler") == (0, "result True\nneighbour True\n")


@pytest.mark.parametrize(
    "scenario", ["handler_closes_the_loop", "asyncio_run_in_a_handler", "handler_installs_a_signal_handler"]
)
def test_what_asyncio_refuses_a_handler_is_the_handler_s_error(scenario: str) -> None:
    assert end_of(scenario) == (0, "AgentError from RuntimeError\nneighbour True\n")


def test_a_loop_that_a_handler_stops_goes_on() -> None:
    assert end_of("handler_stops_the_loop") == (0, "result True\nneighbour True\n")


def test_a_handler_that_cancels_every_task_of_the_loop_costs_no_neighbour_its_work() -> None:
    code, said = end_of("handler_cancels_every_task_of_the_loop")
    assert (code, said.splitlines()[-1]) == (0, "neighbour True"), said


def test_endless_recursion_in_a_handler_ends() -> None:
    assert end_of("handler_recurses_for_ever") == (0, "AgentError from RecursionError\nneighbour True\n")


def test_an_item_whose_task_cannot_be_made_fails_alone() -> None:
    said = "AgentError from MemoryError\nneighbour True\nitems 3 warnings []\n"
    assert end_of("task_of_an_item_cannot_be_made") == (0, said)


def test_a_result_that_contains_itself_is_refused() -> None:
    assert end_of("handler_returns_a_knot") == (0, 2 * "AgentError from AgentError\nneighbour True\n")


def test_a_handler_may_use_a_bridge_itself() -> None:
    assert end_of("bridge_in_a_handler") == (0, "result True\nneighbour True\n")


def test_kill_1_a_handler_that_ignores_cancel_is_given_up(waiting: dict[str, Future[Ended]]) -> None:
    said = "neighbour True\nmeanwhile True\nWorkTimeout\nafterwards True\n"
    assert outcome(waiting["handler_ignores_cancel"].result()) == (0, said)


def test_a_handler_that_waits_while_it_cleans_up_does_not_hold_the_shutdown(waiting: dict[str, Future[Ended]]) -> None:
    assert outcome(waiting["handler_is_cancelled_while_it_cleans_up"].result()) == (0, "over\n")


def test_plain_functions_that_fill_their_pool_do_not_slow_a_coroutine_agent() -> None:
    assert end_of("slow_agents_do_not_slow_others") == (0, "neighbour 50\nslow 500\n")


# Crowds


def test_kill_1_ten_thousand_cancels_at_once() -> None:
    assert outcome(run_in_time("cancel_storm", "10000", seconds=60)) == (0, "cancelled 10000\nerrors 0 generation 1\n")


def test_work_goes_on_while_another_thread_wants_the_gil() -> None:
    assert end_of("gil_hogged_by_another_thread") == (0, "worked 200\n")


def test_a_process_ends_while_another_thread_wants_the_gil() -> None:
    assert end_of("gil_hogged_at_exit") == (0, "worked True\n")


def test_gil_2_no_lock_is_held_by_one_side_while_the_other_attaches() -> None:
    assert end_of("every_call_from_every_thread") == (0, "errors 0\n")


def test_two_bridges_serve_two_loops_of_the_user() -> None:
    assert end_of("two_bridges_on_two_user_loops") == (0, "worked [1, 2]\n")


def test_kill_1_work_of_a_loop_that_was_closed_is_cancelled() -> None:
    assert end_of("user_loop_closed_with_work_in_flight") == (0, "cancelled ['again', 'lost']\n")


def test_an_answer_to_a_closed_loop_is_lost_and_reaches_no_other() -> None:
    assert end_of("answers_come_after_the_loop_was_closed") == (0, "new True\n")


def test_threads_with_loops_of_their_own_come_and_go() -> None:
    assert end_of("threads_come_and_go") == (0, "errors 0\n")


def test_a_time_limit_holds_while_the_loop_thread_is_held_up() -> None:
    assert end_of("time_limit_while_the_loop_thread_is_held_up") == (0, "WorkTimeout\nholding True\n")


def test_cancels_that_race_with_results_leave_every_item_answered() -> None:
    assert end_of("cancels_race_with_results") == (0, "answered 2000 errors 0\n")
