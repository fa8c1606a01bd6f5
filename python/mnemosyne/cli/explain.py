"""``mnemosyne explain``: the page of an error code, from the package itself, so that it needs no network at 3 a.m.

The pages are the one catalogue of both languages. A test holds them together with the code: each code that Rust or
Python can raise has its page, and each page a test that raises it.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING

from mnemosyne.errors import InvalidInput

if TYPE_CHECKING:
    from mnemosyne.cli.options import Options
    from mnemosyne.cli.output import Output

__all__ = ["codes", "explain", "page"]

_PAGES = "error_pages"
_GIVEN = re.compile(r"(?:MN-?)?([0-9]{4})", re.IGNORECASE)


def explain(options: Options, output: Output) -> int:
    """Show the page of one code, or without a code the titles of all.

    Raises:
        InvalidInput: There is no such code (MN-0610).
    """
    if options.error_code is None:
        for code in codes():
            title = _title(page(code))
            output.row("explanation", {"code": code, "title": title}, [(code, 9, "strong"), (title, 0, "")])
        return 0
    code = _known(options.error_code)
    text = page(code)
    output.block("explanation", {"code": code, "title": _title(text), "text": text}, text.splitlines())
    return 0


def codes() -> list[str]:
    """Return every code that has a page, sorted."""
    names = [file.name for file in resources.files("mnemosyne").joinpath(_PAGES).iterdir()]
    return sorted(name.removesuffix(".md") for name in names if name.endswith(".md"))


def page(code: str) -> str:
    """Return the page of a code, in Markdown; its first line is ``# CODE: title``."""
    return resources.files("mnemosyne").joinpath(_PAGES, f"{code}.md").read_text(encoding="utf-8")


def _known(given: str) -> str:
    found = _GIVEN.fullmatch(given.strip())
    code = f"MN-{found[1]}" if found else given
    if code not in codes():
        raise InvalidInput(f"there is no error code {given!r}", code="MN-0610", hint="mnemosyne explain")
    return code


def _title(text: str) -> str:
    return text.splitlines()[0].partition(": ")[2]
