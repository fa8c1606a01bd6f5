"""``demo --kill``: what is said of requests is read off the server's log, also where it is bad news."""

from __future__ import annotations

from collections import Counter

import pytest
from mnemosyne.cli import main
from mnemosyne.cli.kill import _Requests


def requests(arrived: str, answered: str, unanswered: str = "") -> _Requests:
    return _Requests(Counter(arrived), Counter(answered), Counter(unanswered))


def test_requests_that_were_each_answered_once_were_paid_once() -> None:
    seen = requests(arrived="abc", answered="abc")
    assert (seen.again, seen.twice, seen.problem()) == (0, [], None)


def test_a_request_that_a_kill_cut_off_may_be_sent_again() -> None:
    seen = requests(arrived="aabc", answered="abc", unanswered="a")
    assert (seen.again, seen.twice) == (1, [])


def test_a_kill_before_the_request_went_out_sends_nothing_again() -> None:
    seen = requests(arrived="abc", answered="abc", unanswered="a")
    assert (seen.again, seen.twice) == (0, [])


@pytest.mark.parametrize(
    ("arrived", "answered", "unanswered"),
    [("aab", "ab", ""), ("aaab", "ab", "a"), ("aab", "ab", "b"), ("ab", "aab", "")],
    ids=["sent again without reason", "sent too often", "sent again for another's sake", "answered twice"],
)
def test_truth_1_a_request_that_was_paid_for_twice_is_found(arrived: str, answered: str, unanswered: str) -> None:
    seen = requests(arrived, answered, unanswered)
    problem = seen.problem()
    assert seen.twice == ["a"]
    assert problem is not None
    assert problem.code == "MN-0163"


def test_truth_1_a_log_that_lacks_a_request_proves_nothing() -> None:
    problem = requests(arrived="a", answered="ab").problem()
    assert problem is not None
    assert problem.code == "MN-0164"


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--kill", "3", "--base-url", "http://127.0.0.1:1"], "MN-0115"),
        (["--kill", "3", "--model", "claude-opus-5-5"], "MN-0115"),
        (["--kill", "0"], "MN-0115"),
        (["--kill", "33"], "MN-0115"),
    ],
)
def test_a_run_that_cannot_be_judged_is_not_begun(
    capsys: pytest.CaptureFixture[str], flags: list[str], code: str
) -> None:
    assert main(["demo", *flags]) == 2
    assert f"error[{code}]" in capsys.readouterr().err
