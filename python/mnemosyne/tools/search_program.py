"""Search files for a regular expression; run by the guard as ``python -I -S search_program.py PATTERN PATH LIMIT``.

A process of its own, because a pattern that backtracks for ever would hold the agent's event loop and could not be
stopped; as a command it has a time limit. Prints ``path:line:text``; exit code 2 is a bad pattern.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator

_LINE_CHARACTERS = 300
_FILE_BYTES = 5_000_000
_SKIPPED = {".git", ".venv", "node_modules", "__pycache__", "target"}


def files(start: str) -> Iterator[str]:
    """Yield regular files below ``start``, sorted; links are not followed."""
    if not os.path.isdir(start):
        yield start
        return
    for folder, directories, names in os.walk(start):
        directories[:] = sorted(name for name in directories if name not in _SKIPPED)
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                yield os.path.relpath(path)


def matches(expression: re.Pattern[str], path: str) -> Iterator[str]:
    """Yield the matching lines of one file; none for a large or binary one."""
    try:
        if os.path.getsize(path) > _FILE_BYTES:
            return
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return
    if b"\0" in content:
        return
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        if expression.search(line):
            yield f"{path}:{number}:{line[:_LINE_CHARACTERS]}"


def main(pattern: str, start: str, limit: int) -> int:
    """Print at most ``limit`` matches."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        print(f"the pattern is not a regular expression: {error}")
        return 2
    found = 0
    for path in files(start):
        for line in matches(expression, path):
            if found == limit:
                print(f"[more than {limit} matches; narrow the pattern or the path]")
                return 0
            print(line)
            found += 1
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
