"""Rules in plain words, and the code that the demo model makes of them.

A docstring of the project says what its function does, for example::

    Let price be cost of goods and quantity.
    Rules:
    - for a quantity from 10 on: price minus 10 percent
    - otherwise: price

Words are sometimes ambiguous, and the model reads like somebody in a hurry: ``READINGS`` lists for each phrase
what it takes it to mean first, then what else it may mean. Only an example that contradicts the first reading, as a
failing assertion does, makes it try the next one: ``choose``.
"""

from __future__ import annotations

import ast
import itertools
import operator
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "READINGS",
    "Case",
    "Example",
    "Rule",
    "UnreadableError",
    "agrees",
    "choose",
    "evaluate",
    "examples",
    "parse",
    "render",
]

READINGS: Mapping[str, tuple[str, ...]] = {
    "from # on": (">", ">="),
    "up to #": ("<", "<="),
    "of at least #": (">=",),
    "of at most #": ("<=",),
    "of more than #": (">",),
    "of less than #": ("<",),
    "of exactly #": ("==",),
}
"""Phrase (``#`` is the bound) to comparison operators, the hasty reading first."""

_TOKEN = re.compile(r'\s*("[^"]*"|\d+(?:\.\d+)?|[A-Za-z_]\w*|[^\s\w])')
_ITEM = re.compile(r"(Let |Rules?:|- )")
_MAX_DEPTH = 40


class UnreadableError(Exception):
    """Words, code or values outside of what the model understands."""


@dataclass(frozen=True)
class Case:
    """One answer of a rule.

    Attributes:
        value: A Python expression.
        subject: The name that is compared, or None where the answer holds otherwise.
        phrase: A key of ``READINGS``.
        bound: A number or a name, as written.
    """

    value: str
    subject: str | None = None
    phrase: str = ""
    bound: str = ""


@dataclass(frozen=True)
class Rule:
    """What one docstring says.

    Attributes:
        lets: Intermediate names and their Python expressions, in order.
        cases: The answers; the first that holds wins, and the last holds always.
    """

    lets: tuple[tuple[str, str], ...]
    cases: tuple[Case, ...]

    def readings(self) -> Iterator[dict[str, str]]:
        """Yield each way to read the phrases of this rule, the hasty one first."""
        phrases = list(dict.fromkeys(case.phrase for case in self.cases if case.subject))
        for operators in itertools.product(*(READINGS[phrase] for phrase in phrases)):
            yield dict(zip(phrases, operators, strict=True))


@dataclass(frozen=True)
class Example:
    """A failing assertion: the call it made, what came back, and what was due."""

    function: str
    arguments: tuple[object, ...]
    got: object
    expected: object

    def __str__(self) -> str:
        arguments = ", ".join(repr(argument) for argument in self.arguments)
        return f"{self.function}({arguments}) gave {self.got!r} where {self.expected!r} is due"


# --- words to expressions ---------------------------------------------------------------------------------------


class _Words:
    """A reader of one sentence, word by word; every method returns Python source."""

    def __init__(self, sentence: str) -> None:
        self.tokens = _TOKEN.findall(sentence.strip().removesuffix("."))
        self.sentence = " ".join(sentence.split())

    def sees(self, *words: str) -> bool:
        return self.tokens[: len(words)] == list(words)

    def take(self, *words: str) -> bool:
        if not self.sees(*words):
            return False
        del self.tokens[: len(words)]
        return True

    def next(self, pattern: str) -> str:
        if not self.tokens or not re.fullmatch(pattern, self.tokens[0]):
            raise UnreadableError(f"I do not understand {self.sentence!r}")
        return str(self.tokens.pop(0))

    def name(self) -> str:
        return self.next(r"[A-Za-z_]\w*")

    def end(self) -> None:
        if self.tokens:
            raise UnreadableError(f"I do not understand {' '.join(self.tokens)!r} in {self.sentence!r}")

    def names(self) -> list[str]:
        """``a``, ``a and b`` or ``a, b and c``; stops before a comma or an ``and`` that means something else."""
        found = [self.name()]
        while not (self.sees("and", "then") or self.sees(",", "rounded") or self.sees(",", "one")):
            if not (self.take("and") or self.take(",")):
                break
            found.append(self.name())
        return found

    def value(self) -> str:
        """A whole answer: a sum, rows of a list, or arithmetic."""
        if self.take("the", "sum", "of"):
            value = f"sum({self.series()[0]})"
        else:
            value, many = self.series()
            value = f"[{value}]" if many else value
        if self.take("and", "then"):
            value = f"[*{value}, {self.arithmetic()}]"
        if self.take(",", "rounded", "to"):
            value = f"round({value}, {self.next('[0-9]+')})"
            self.next("digits?")
        if self.take(",", "one", "per", "line"):
            value = f'"\\n".join({value})'
        return value

    def series(self) -> tuple[str, bool]:
        value = self.arithmetic()
        if not self.take("for", "every"):
            return value, False
        names = ", ".join(self.names())
        self.next("in")
        return f"{value} for {names} in {self.name()}", True

    def arithmetic(self) -> str:
        left, compound = self.product(), False
        while self.sees("plus") or self.sees("minus"):
            sign = "+" if self.take("plus") else "-"
            self.take("minus")
            right = self.product()
            if self.take("percent"):
                left = f"({left})" if compound else left
                left = f"{left} * (100 {sign} {right}) / 100"
            else:
                left, compound = f"{left} {sign} {right}", True
        return left

    def product(self) -> str:
        left = self.atom()
        while self.sees("times") or self.sees("divided", "by"):
            sign = "*" if self.take("times") else "/"
            self.take("divided", "by")
            left = f"{left} {sign} {self.atom()}"
        return left

    def atom(self) -> str:
        if self.tokens and self.tokens[0].startswith('"'):
            return _template(self.next('".*"'))
        if self.tokens and self.tokens[0][0].isdigit():
            return self.next(".+")
        name = self.name()
        return f"{name}({', '.join(self.names())})" if self.take("of") else name

    def condition(self) -> tuple[str, str, str]:
        """``for a quantity from 10 on``: the subject, the phrase and the bound."""
        self.next("for")
        if not (self.take("a") or self.take("an")):
            self.take("the")
        subject = self.name()
        for phrase in READINGS:
            before, after = (part.split() for part in phrase.split("#"))
            if self.take(*before):
                bound = self.next(r"\w+(?:\.\d+)?")
                if after:
                    self.next(after[0])
                return subject, phrase, bound
        raise UnreadableError(f"I do not understand the condition of {self.sentence!r}")


def _template(text: str) -> str:
    """An f-string, if its fields are plain names: a docstring must not smuggle code in."""
    for _, field, _, conversion in string.Formatter().parse(text[1:-1]):
        if field is not None and (not field.isidentifier() or conversion):
            raise UnreadableError(f"I only fill plain names into a text, not {field!r}")
    return f"f{text}"


def parse(docstring: str) -> Rule:
    """Read the rule of a docstring.

    Raises:
        UnreadableError: There is none, or its words are not in the rule language.
    """
    lets: list[tuple[str, str]] = []
    cases: list[Case] = []
    for item in _items(docstring):
        if item.startswith("Let "):
            words = _Words(item.removeprefix("Let "))
            name = words.name()
            words.next("be")
            lets.append((name, words.value()))
        elif item.startswith("Rule:"):
            words = _Words(item.removeprefix("Rule:"))
            cases.append(Case(words.value()))
        else:
            words = _Words(item.removeprefix("- "))
            subject, phrase, bound = (None, "", "") if words.take("otherwise") else words.condition()
            words.next(":")
            cases.append(Case(words.value(), subject, phrase, bound))
        words.end()
    if not cases or cases[-1].subject or not all(case.subject for case in cases[:-1]):
        raise UnreadableError("I need one `Rule:`, or `Rules:` that end with `- otherwise:`")
    return Rule(tuple(lets), tuple(cases))


def _items(docstring: str) -> list[str]:
    """The sentences of the rule; a line that begins none continues the one before, an empty line ends it."""
    items: list[str] = []
    is_open = False
    for line in (line.strip() for line in docstring.splitlines()):
        if _ITEM.match(line):
            is_open = line != "Rules:"
            items += [line] if is_open else []
        elif line and is_open:
            items[-1] += " " + line
        else:
            is_open = False
    return items


# --- expressions to code ----------------------------------------------------------------------------------------


def render(rule: Rule, reading: Mapping[str, str]) -> list[str]:
    """Return the body of a function that follows ``rule`` in this reading, without indentation."""
    lines = [f"{name} = {value}" for name, value in rule.lets]
    for case in rule.cases:
        if case.subject:
            lines.append(f"if {case.subject} {reading[case.phrase]} {case.bound}:")
            lines.append(f"    return {case.value}")
        else:
            lines.append(f"return {case.value}")
    return lines


def choose(rule: Rule, header: str, known: Sequence[Example]) -> list[str]:
    """Return the body in the first reading that no example contradicts, or in the hasty one if all are contradicted.

    Args:
        rule: What the docstring says.
        header: The ``def`` line or lines of the function.
        known: Failing assertions about this very function.
    """
    bodies = [render(rule, reading) for reading in rule.readings()]
    for body in bodies:
        source = "\n".join([header, *(f"    {line}" for line in body)])
        if all(agrees(source, example) for example in known):
            return body
    return bodies[0]


def agrees(source: str, example: Example) -> bool:
    """Whether the function gives what the example demands; no, where ``evaluate`` cannot tell."""
    try:
        return evaluate(source, example.arguments) == example.expected
    except UnreadableError:
        return False


# --- a safe evaluator: arithmetic, comparisons and branches, nothing else -----------------------------------------

_OPERATORS: Mapping[type, Callable[..., object]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Eq: operator.eq,
}


def evaluate(source: str, arguments: Sequence[object]) -> object:
    """Return what the one function in ``source`` gives for ``arguments``, without running it as Python.

    Raises:
        UnreadableError: It does more than assignments, ``if``, ``return``, arithmetic, comparisons and ``round``.
    """
    try:
        function = ast.parse(source).body[0]
    except (SyntaxError, IndexError) as error:
        raise UnreadableError(str(error)) from error
    if not isinstance(function, ast.FunctionDef) or len(function.args.args) != len(arguments):
        raise UnreadableError("not a function of that many arguments")
    scope = dict(zip((argument.arg for argument in function.args.args), arguments, strict=True))
    for statement in function.body:
        if isinstance(statement, ast.If):
            taken = statement.body if _value(statement.test, scope) else statement.orelse
            statement = taken[0] if taken else ast.Pass()
        if isinstance(statement, ast.Return) and statement.value:
            return _value(statement.value, scope)
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            scope[statement.targets[0].id] = _value(statement.value, scope)
    raise UnreadableError("the function returns nothing")


def _value(node: ast.expr, scope: Mapping[str, object], depth: int = 0) -> object:
    def inner(child: ast.expr) -> object:
        return _value(child, scope, depth + 1)

    try:
        match node:
            case _ if depth > _MAX_DEPTH:
                raise UnreadableError("nested too deeply")
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name) if name in scope:
                return scope[name]
            case ast.BinOp(left=left, op=sign, right=right):
                return _OPERATORS[type(sign)](_number(inner(left)), _number(inner(right)))
            case ast.Compare(left=left, ops=[sign], comparators=[right]):
                return _OPERATORS[type(sign)](inner(left), inner(right))
            case ast.Call(func=ast.Name(id="round"), args=[value, ast.Constant(value=int(digits))]):
                return round(_number(inner(value)), digits)
    except (KeyError, TypeError, ArithmeticError) as error:
        raise UnreadableError(str(error)) from error
    raise UnreadableError(f"I cannot work out {ast.unparse(node)!r}")


def _number(value: object) -> float:
    if isinstance(value, int | float):
        return value
    raise UnreadableError(f"{value!r} is not a number")


# --- failing assertions to examples -------------------------------------------------------------------------------

_MISMATCH = re.compile(r"AssertionError: (.+?) != (.+?)(?: : .*)?$")


def examples(output: str) -> list[Example]:
    """Return the failing ``assertEqual`` calls in what unittest printed, as far as they are calls with plain values.

    The source line of a traceback tells the call, the ``AssertionError`` line below it what came back and what was due.
    """
    found: list[Example] = []
    source: ast.Call | None = None
    for line in (line.strip() for line in output.splitlines()):
        if mismatch := _MISMATCH.match(line):
            example = _example(source, *mismatch.groups()) if source else None
            found += [example] if example and example not in found else []
            source = None
        elif "assert" in line:
            source = _assertion(line) or source
    return found


def _assertion(line: str) -> ast.Call | None:
    try:
        call = ast.parse(line, mode="eval").body
    except (SyntaxError, ValueError):
        return None
    is_equal = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and "Equal" in call.func.attr
    return call if is_equal and isinstance(call, ast.Call) and len(call.args) >= 2 else None


def _example(assertion: ast.Call, first: str, second: str) -> Example | None:
    try:
        values = [ast.literal_eval(first), ast.literal_eval(second)]
        if not isinstance(assertion.args[0], ast.Call):
            assertion.args[:2] = assertion.args[1::-1]
            values.reverse()
        call = assertion.args[0]
        if not isinstance(call, ast.Call) or call.keywords:
            return None
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        return Example(name, tuple(ast.literal_eval(argument) for argument in call.args), values[0], values[1])
    except (SyntaxError, ValueError):
        return None
