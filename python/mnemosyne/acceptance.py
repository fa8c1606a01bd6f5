"""Whether a shell command can fail at all: one that cannot proves nothing about a change (TRUTH-1).

Only what the text itself shows is judged here: what a list, a pipe, a ``|| true`` makes of an exit code. Whatever the
text does not show (a script that asserts nothing, a test that was green all along) is measured by the gates: green
before the change is no evidence. So every doubt is answered with "it can".

The same function is ``can_fail`` in ``rust/core/src/acceptance.rs``, which decides what the store takes; this one
tells the model of it before that. Both are held to ``tests/shared/acceptance.json``.
"""

from __future__ import annotations

import re

__all__ = ["can_fail"]

_NEVER_FAIL = frozenset({"true", ":", "echo", "printf"})
_NEVER_FAIL_IN_A_PIPE = frozenset({"cat", "head", "less", "more", "sort", "tail", "tee", "wc"})
"""Of a pipe only the exit code of the last command counts, and these have none of their own to give."""
_PLAIN = re.compile(r"""[^\\'"`#<()&|;\n]+""")
_QUOTED = re.compile(r"""[^\\'"`]+""")
_KEYWORDS = frozenset({"if", "for", "while", "until", "case", "function", "{"})


def can_fail(command: str) -> bool:
    """Return False for a command that exits with 0 whatever the project is like; True in every doubt."""
    segments = _segments(command)
    if segments is None or "pipefail" in command:
        return True
    if any(text.split()[0] in _KEYWORDS for text, _ in segments if text):
        return True
    return _list_can_fail([(text, operator) for text, operator in segments if text])


def _list_can_fail(segments: list[tuple[str, str]]) -> bool:
    result = chain = piped = stops_on_error = False
    joined_by = ""
    for text, operator in segments:
        words = text.split()
        if operator == "|":
            piped = True
            continue
        fails = _one_can_fail(text, words, piped=piped)
        chain = chain or fails if joined_by == "&&" else chain and fails if joined_by == "||" else fails
        alone, piped = not joined_by and not piped, False
        if operator in ("&&", "||"):
            joined_by = operator
            continue
        if alone and words == ["exit"]:  # with the exit code of what came before
            return result
        result = (chain and operator != "&") or (stops_on_error and result)
        if alone and words == ["exit", "0"]:  # nothing after it is run
            return result
        if words[:1] == ["set"] and any(word == "errexit" or _sets_errexit(word) for word in words[1:]):
            stops_on_error = True
        joined_by = ""
    return result


def _one_can_fail(text: str, words: list[str], *, piped: bool) -> bool:
    if text.startswith("(") and text.endswith(")"):
        return can_fail(text[1:-1])
    while words and "=" in words[0] and words[0].split("=")[0].isidentifier():
        words = words[1:]
    if not words or words == ["exit", "0"] or words == ["exit"] or words[0] == "set":
        return False
    if "${" in text and "?" in text:  # ${NAME:?} ends the shell where NAME is not set
        return True
    name = words[0].rpartition("/")[2]
    return name not in _NEVER_FAIL and not (piped and name in _NEVER_FAIL_IN_A_PIPE)


def _sets_errexit(word: str) -> bool:
    return word.startswith("-") and "e" in word


def _segments(command: str) -> list[tuple[str, str]] | None:
    """Split at the operators outside quotes and parentheses: text and the operator after it; None in any doubt."""
    found: list[tuple[str, str]] = []
    text, quote, depth, position = "", "", 0, 0
    while position < len(command):
        # Most of a command is plain, and is taken in one go.
        if run := (_QUOTED if quote else _PLAIN).match(command, position):
            text, position = text + run[0], run.end()
            continue
        char, after = command[position], command[position + 1 : position + 2]
        position += 1
        if quote:
            if char == "\\" and quote != "'":
                text, position = text + char + after, position + 1
                continue
            quote = "" if char == quote else quote
            text += char
        elif char == "\\":
            if after != "\n":
                text += char + after
            position += 1
        elif char in "'\"`":
            quote, text = char, text + char
        elif char == "#" and (not text or text[-1].isspace()):
            end = command.find("\n", position)
            position = len(command) if end < 0 else end
        elif char == "<" and after == "<":
            return None  # a document follows, and it is no list of commands
        elif char == "(":
            depth, text = depth + 1, text + char
        elif char == ")":
            depth, text = depth - 1, text + char
        elif depth > 0 or char not in ";&|\n" or (char == "&" and (after == ">" or text[-1:] in ("<", ">"))):
            text += char
        else:
            double = char in "&|" and after == char
            found.append((text.strip(), char * 2 if double else ";" if char == "\n" else char))
            text, position = "", position + double
    if quote or depth != 0:
        return None
    return [*found, (text.strip(), "")]
