"""docs/supervision.md names a test for each case of OTP's own list: every test that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "supervision.md").read_text(encoding="utf-8")
CASES_OF_OTP = 93
AT_MOST_WITHOUT_A_TEST = 40


def rows(heading: str) -> list[tuple[str, str]]:
    """The cases of a table, each with the cell that says what became of it."""
    section = PAGE.split(f"## {heading}", 1)[1].split("\n## ", 1)[0]
    cells = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")][2:]
    return [(row[-2].strip(" |"), row[-1].strip(" |")) for row in cells]


def every_test() -> set[str]:
    sources = [*ROOT.glob("rust/**/*.rs"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("tests/rust/*.rs")]
    marked = re.compile(r"#\[(?:tokio::)?test[^]]*\]\s+(?:async )?fn (\w+)|^ *(?:async )?def (test_\w+)", re.MULTILINE)
    return {
        name for path in sources for pair in marked.findall(path.read_text(encoding="utf-8")) for name in pair if name
    }


def test_every_case_of_otp_has_a_test_that_exists_or_a_reason() -> None:
    table = rows("OTP's `supervisor_SUITE`, case by case")
    assert len({case for case, _ in table}) == len(table) == CASES_OF_OTP
    without = [case for case, cell in table if not cell.startswith("`")]
    assert len(without) <= AT_MOST_WITHOUT_A_TEST, without
    assert all(len(cell) > 20 for _, cell in table), "a reason is a sentence"


def test_every_test_that_the_page_names_exists() -> None:
    known = every_test()
    named = {cell.strip("`") for _, cell in rows("OTP's") + rows("Elixir") if cell.startswith("`")}
    assert len(named) > 40
    assert not named - known
