"""What the demo model sees in a Python project: unfinished functions, who imports whom, and which test is whose.

Everything is derived from the text of the files with ``ast``; nothing is imported or run.
"""

from __future__ import annotations

import ast
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from mnemosyne.demo import rules

__all__ = [
    "Function",
    "Module",
    "Project",
    "UnworkableError",
    "functions",
    "imported_names",
    "is_unfinished",
    "module_name",
]

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


class UnworkableError(Exception):
    """The project cannot be finished by the demo model; the text says why."""


@dataclass(frozen=True)
class Function:
    """A function at the top level of a module.

    Attributes:
        header: Its source from ``def`` to the end of the docstring.
        source: All of its source.
    """

    name: str
    signature: str
    docstring: str
    header: str
    source: str
    unfinished: bool

    def with_body(self, lines: Iterable[str]) -> str:
        """Return its source with another body."""
        return "\n".join([self.header, *(f"    {line}" for line in lines)])


@dataclass(frozen=True)
class Module:
    """A file with unfinished functions, and the tests that prove it."""

    path: str
    name: str
    purpose: str
    functions: tuple[Function, ...]
    depends_on: tuple[str, ...]
    tests: tuple[str, ...]

    def requirement(self, function: Function) -> str:
        """Say what is due, in one line."""
        return f"{self.name}.{function.signature}: {' '.join(function.docstring.split())}"


class Project:
    """The files of a project, by path relative to its root."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = files
        self.trees = {path: _parsed(path, text) for path, text in sorted(files.items()) if path.endswith(".py")}
        self.paths = {module_name(path): path for path in self.trees}

    def unfinished_modules(self) -> list[Module]:
        """Return the modules with unfinished functions, each after those it needs.

        Raises:
            UnworkableError: There is none, one has no test or no readable rule, or they need one another in a circle.
        """
        names = [name for name in sorted(self.paths) if self._is_unfinished(name)]
        if not names:
            raise UnworkableError("I find no unfinished function (one whose body is `raise NotImplementedError`)")
        needs = {name: (self._needs(name) & set(names)) - {name} for name in names}
        if circle := [name for name in names if any(name in needs[other] for other in needs[name])]:
            raise UnworkableError(f"these modules need one another in a circle: {', '.join(circle)}")
        order = sorted(names, key=lambda name: (len(needs[name]), name))
        tests = self._tests(order)
        return [self._module(name, needs, tests[name]) for name in order]

    def _module(self, name: str, needs: Mapping[str, set[str]], tests: list[str]) -> Module:
        path = self.paths[name]
        found = tuple(function for function in functions(self.files[path]) if function.unfinished)
        for function in found:
            try:
                rules.parse(function.docstring)
            except rules.UnreadableError as error:
                raise UnworkableError(f"I cannot read the rule of {name}.{function.name}: {error}") from error
        if not tests:
            raise UnworkableError(f"no test imports {name}, so that nothing could prove it")
        indirect = set().union(*(needs[other] for other in needs[name]))
        direct = tuple(sorted(needs[name] - indirect))
        purpose = ast.get_docstring(self.trees[path]) or f"What {name} does."
        return Module(path, name, purpose.splitlines()[0], found, direct, tuple(tests))

    def _is_unfinished(self, name: str) -> bool:
        return any(is_unfinished(node) for node in _function_nodes(self.trees[self.paths[name]]))

    def _needs(self, name: str) -> set[str]:
        """The modules of this project that ``name`` imports, directly or not."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            current = waiting.pop()
            imported = imported_names(self.trees[self.paths[current]], self.paths[current]) & set(self.paths)
            waiting += imported - found
            found |= imported
        return found

    def _tests(self, order: list[str]) -> dict[str, list[str]]:
        """Give each test module to the last of the modules it imports: before that one it cannot be green."""
        tests: dict[str, list[str]] = {name: [] for name in order}
        for path, tree in self.trees.items():
            file_name = posixpath.basename(path)
            if file_name.startswith("test") and file_name != "__init__.py":
                imported = imported_names(tree, path)
                if owners := [name for name in order if name in imported]:
                    tests[owners[-1]].append(module_name(path))
        return tests


def functions(text: str) -> list[Function]:
    """Return the documented functions at the top level of a file, in order."""
    lines = text.splitlines()
    found = []
    for node in _function_nodes(ast.parse(text)):
        docstring = ast.get_docstring(node)
        if docstring is None or node.end_lineno is None:
            continue
        header = "\n".join(lines[node.lineno - 1 : node.body[0].end_lineno])
        source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        signature = f"{node.name}({', '.join(argument.arg for argument in node.args.args)})"
        found.append(Function(node.name, signature, docstring, header, source, is_unfinished(node)))
    return found


def is_unfinished(node: FunctionNode) -> bool:
    """Whether the body is a docstring and ``raise NotImplementedError``."""
    match node.body:
        case [ast.Expr(value=ast.Constant()), ast.Raise(exc=raised)]:
            raised = raised.func if isinstance(raised, ast.Call) else raised
            return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
    return False


def imported_names(tree: ast.Module, path: str) -> set[str]:
    """Return every dotted name that the imports of a file may mean: ``from a import b`` gives ``a`` and ``a.b``."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = path.removesuffix(".py").split("/")[: -node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}".lstrip(".") for alias in node.names}
    return found


def _function_nodes(tree: ast.Module) -> Iterator[FunctionNode]:
    return (node for node in tree.body if isinstance(node, FunctionNode))


def module_name(path: str) -> str:
    """Return the dotted name under which a file is imported from the root of the project."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _parsed(path: str, text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise UnworkableError(f"{path} is not valid Python: {error}") from error
