"""What the model is told about the tools, and the check of what it sends back."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

__all__ = ["DEFINITIONS", "READ_ONLY", "check_input"]

_TYPES: Mapping[str, tuple[type, ...]] = {"string": (str,), "number": (int, float)}


def _tool(name: str, description: str, required: list[str], **properties: tuple[str, str]) -> dict[str, JsonValue]:
    described: dict[str, JsonValue] = {
        key: {"type": kind, "description": text} for key, (kind, text) in properties.items()
    }
    schema: dict[str, JsonValue] = {
        "type": "object",
        "properties": described,
        "required": list[JsonValue](required),
        "additionalProperties": False,
    }
    return {"name": name, "description": description, "input_schema": schema}


_PATH = ("string", "Path relative to the root of the project.")

DEFINITIONS: list[dict[str, JsonValue]] = [
    _tool(
        "read_file",
        "Read a text file of the project, its first 60,000 characters; for more use run_command.",
        ["path"],
        path=_PATH,
    ),
    _tool(
        "write_file",
        "Write a whole text file; makes its folders, replaces what was there.",
        ["path", "content"],
        path=_PATH,
        content=("string", "The whole content."),
    ),
    _tool(
        "edit_file",
        "Replace one piece of text in a file. The old text must occur exactly once; include enough around it.",
        ["path", "old", "new"],
        path=_PATH,
        old=("string", "The text to replace, exactly as it is in the file, white space too."),
        new=("string", "The text to put in its place."),
    ),
    _tool(
        "list_files",
        "List the files below a folder, sorted.",
        [],
        path=("string", "A folder relative to the root of the project; the root if left out."),
    ),
    _tool(
        "search",
        "Search the text files for a regular expression (Python's syntax), line by line. Gives path:line:text.",
        ["pattern"],
        pattern=("string", "The regular expression."),
        path=("string", "A file or folder relative to the root of the project; the root if left out."),
    ),
    _tool(
        "run_command",
        "Run a shell command (/bin/sh) in the root of the project. Gives its exit code and output. Everything it "
        "started ends with it: to try a server, start it and use it in one command.",
        ["command"],
        command=("string", "The command line."),
        timeout_seconds=("number", "Time limit in seconds; 120 if left out, at most 600."),
    ),
]
"""In the form of the Messages API."""

READ_ONLY = frozenset({"read_file", "list_files", "search"})
"""Tools that change nothing, so an interrupted call may simply be made again."""

_SCHEMAS = {str(tool["name"]): tool["input_schema"] for tool in DEFINITIONS}


def check_input(name: str, input: JsonValue) -> str | None:
    """Return what is wrong with the input of a tool, as a sentence for the model; None if nothing is."""
    schema = _SCHEMAS[name]
    assert isinstance(schema, dict)
    assert isinstance(schema["properties"], dict)
    assert isinstance(schema["required"], list)
    if not isinstance(input, dict):
        return f"the input of {name} must be an object"
    known = schema["properties"]
    if unknown := sorted(set(input) - set(known)):
        return f"{name} has no input {', '.join(unknown)}; it has {', '.join(known)}"
    if missing := [str(key) for key in schema["required"] if key not in input]:
        return f"{name} needs {', '.join(missing)}"
    for key, value in input.items():
        described = known[key]
        assert isinstance(described, dict)
        kind = str(described["type"])
        if isinstance(value, bool) or not isinstance(value, _TYPES[kind]):
            return f"{key} of {name} must be a {kind}"
    return None
