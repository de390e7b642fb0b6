"""Templates for ``weave report -f``: the part of Go's text/template that scripts made for Weave Net use, and some more.

Source: https://pkg.go.dev/text/template. There are text, fields (``.IPAM.Range``), ``$`` and variables, literals,
parentheses, pipes, ``range``, ``if`` and ``with`` with ``else``, comments, trim markers, and the functions below. There
are no ``define``, ``template``, ``break`` and methods. Where Go has a struct there is a JSON object here; a field that
it lacks is an error, as in Go.

:func:`parse` -> :class:`Template`, whose ``render`` returns the text. Both raise :class:`TemplateError`.
"""

from __future__ import annotations

import difflib
import itertools
import json
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

NESTING_MAX = 50
"""Of blocks and parentheses."""

_ACTION = re.compile(r"\{\{(-\s)?\s*(/\*.*?\*/|(?:\"(?:\\.|[^\"\\])*\"|`[^`]*`|[^\"`])*?)\s*(\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<string>"(?:\\.|[^"\\\n])*"|`[^`]*`)
    | (?P<number>-?\d+(?:\.\d+)?(?![\w.]))
    | (?P<field>(?:\.[A-Za-z_]\w*)+)
    | (?P<variable>\$\w*(?:\.[A-Za-z_]\w*)*)
    | (?P<word>[A-Za-z_]\w*)
    | (?P<close>\)(?:\.[A-Za-z_]\w*)*)
    | (?P<sign>:=|[(.,|])
    )""",
    re.VERBOSE,
)
_VERB = re.compile(r"%([-+ 0#]*\d*(?:\.\d+)?)([a-zA-Z%])")
_WORDS: dict[str, Any] = {"true": True, "false": False, "nil": None}


class TemplateError(Exception):
    """The template cannot be right, or does not fit the data; a sentence for a person."""


class Token(NamedTuple):
    kind: str
    text: str


Scope = dict[str, Any]
"""Variables by name with ``$``; ``"."`` is the dot."""
Node = Callable[[Scope], str]
Value = Callable[[Scope], Any]


class Template:
    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes

    def render(self, data: Any) -> str:
        return _text(self._nodes, {".": data, "$": data})


def parse(source: str) -> Template:
    return Template(_Parser(source).whole())


def _text(nodes: Sequence[Node], scope: Scope) -> str:
    return "".join([node(scope) for node in nodes])


# --- values as Go shows and compares them ---


def shown(value: Any) -> str:
    """As ``fmt.Print``: a list is ``[a b]``, an object ``map[key:value]`` in the order of its keys."""
    match value:
        case None:
            return "<no value>"
        case bool():
            return "true" if value else "false"
        case list():
            return f"[{' '.join(map(shown, value))}]"
        case dict():
            return f"map[{' '.join(f'{key}:{shown(value[key])}' for key in sorted(value))}]"
    return str(value)


def _len(value: Any) -> int:
    if not isinstance(value, str | list | dict):
        raise TemplateError(f"len: expected text, a list or an object; found: {shown(value)}")
    return len(value.encode()) if isinstance(value, str) else len(value)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, list):
            if not isinstance(key, int) or not 0 <= key < len(value):
                raise TemplateError(f"index: expected a number below {len(value)}; found: {shown(key)}")
            value = value[key]
        elif isinstance(value, dict):
            value = value.get(key)
        else:
            raise TemplateError(f"index: expected a list or an object; found: {shown(value)}")
    return value


def _equal(value: Any, *others: Any) -> bool:
    if not others:
        raise TemplateError("eq: expected something to compare with")
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in others)


def _ordered(name: str, compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def function(left: Any, right: Any) -> bool:
        try:
            return compare(left, right)
        except TypeError:
            raise TemplateError(f"{name}: cannot compare {shown(left)} with {shown(right)}") from None

    return function


def _printf(pattern: Any, *values: Any) -> str:
    if not isinstance(pattern, str):
        raise TemplateError(f"printf: expected a text to fill in; found: {shown(pattern)}")
    left = list(values)

    def one(match: re.Match[str]) -> str:
        flags, verb = match.groups()
        if verb == "%":
            return "%"
        if not left:
            raise TemplateError(f"printf: nothing is left for {match[0]}")
        value = left.pop(0)
        try:
            if verb in "vst":
                return f"%{flags}s" % shown(value)
            if verb == "q":
                return f"%{flags}s" % json.dumps(value, ensure_ascii=False)
            if verb in "dxXfeg":
                return str(f"%{flags}{verb}" % value)
        except (TypeError, ValueError):
            raise TemplateError(f"printf: {match[0]} does not fit {shown(value)}") from None
        raise TemplateError(f"printf: expected one of %v %s %t %q %d %x %f %e %g %%; found: {match[0]}")

    text = _VERB.sub(one, pattern)
    if left:
        raise TemplateError(f"printf: nothing in {pattern!r} stands for {shown(left[0])}")
    return text


def _print(*values: Any) -> str:
    """With spaces between two of which neither is text."""
    parts = [shown(value) for value in values[:1]]
    for before, value in itertools.pairwise(values):
        parts.append(shown(value) if isinstance(before, str) or isinstance(value, str) else f" {shown(value)}")
    return "".join(parts)


def _last_unless(wanted: bool) -> Callable[..., Any]:
    """``and`` (False), ``or`` (True): the first value that decides, else the last."""

    def function(*values: Any) -> Any:
        if not values:
            raise TemplateError("and, or: expected a value")
        return next((value for value in values if bool(value) == wanted), values[-1])

    return function


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": _len,
    "json": lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
    "index": _index,
    "eq": _equal,
    "ne": lambda left, right: not _equal(left, right),
    "lt": _ordered("lt", operator.lt),
    "le": _ordered("le", operator.le),
    "gt": _ordered("gt", operator.gt),
    "ge": _ordered("ge", operator.ge),
    "not": lambda value: not value,
    "and": _last_unless(False),
    "or": _last_unless(True),
    "print": _print,
    "println": lambda *values: " ".join(map(shown, values)) + "\n",
    "printf": _printf,
}


def _field(name: str, of: Value) -> Value:
    def value(scope: Scope) -> Any:
        found = of(scope)
        if not isinstance(found, dict):
            raise TemplateError(f".{name}: expected an object; found: {shown(found)[:100]}")
        if name not in found:
            near = difflib.get_close_matches(name, found, n=1)
            step = f"did you mean .{near[0]}?" if near else f"there are {', '.join(sorted(found))}"
            raise TemplateError(f".{name}: not in the report; {step}")
        return found[name]

    return value


def _fields(path: str, value: Value) -> Value:
    """``path``: names with dots between them."""
    for name in filter(None, path.split(".")):
        value = _field(name, value)
    return value


def _declaration(name: str, value: Value) -> Node:
    def node(scope: Scope) -> str:
        scope[name] = value(scope)
        return ""

    return node


def _called(name: str, arguments: Sequence[Value]) -> Value:
    function = FUNCTIONS[name]

    def value(scope: Scope) -> Any:
        found = [argument(scope) for argument in arguments]
        try:
            return function(*found)
        except TypeError:
            raise TemplateError(f"{name}: {len(found)} values do not fit it") from None

    return value


# --- reading ---


class _Parser:
    """Recursive descent over the actions of a template; in each action, over its tokens."""

    def __init__(self, source: str) -> None:
        self._pieces = _pieces(source)
        self._tokens: list[Token] = []
        self._action = ""
        self._depth = 0

    def whole(self) -> list[Node]:
        nodes, end = self._block(set())
        if end:
            raise TemplateError(f"{{{{{end}}}}} has nothing to belong to")
        return nodes

    def _block(self, known: set[str]) -> tuple[list[Node], str]:
        """Nodes up to ``end`` or ``else``, which the second value is; empty at the end of the template. ``known``:
        variables that there are; those of this block are added."""
        nodes: list[Node] = []
        while self._pieces:
            text, action = self._pieces.pop(0)
            if text:
                nodes.append(lambda scope, text=text: text)  # type: ignore[misc]
            if action is None:
                continue
            self._begin(action)
            word = self._tokens[0].text if self._tokens and self._tokens[0].kind == "word" else ""
            if word in ("end", "else"):
                self._take()
                return nodes, word
            if word in ("if", "with", "range"):
                self._take()
                nodes.append(self._structure(word, known))
            elif word in ("define", "template", "block", "break", "continue"):
                raise TemplateError(f"{{{{{action}}}}}: templates of weave have no {word}")
            else:
                nodes.append(self._output(known))
        return nodes, ""

    def _begin(self, action: str) -> None:
        self._action = action
        self._tokens = []
        at = 0
        while action[at:].strip():
            match = _TOKEN.match(action, at)
            if match is None:
                raise self._wrong(f"cannot read {action[at:].strip()[:40]!r}")
            assert match.lastgroup is not None
            self._tokens.append(Token(match.lastgroup, match[match.lastgroup]))
            at = match.end()

    def _wrong(self, problem: str) -> TemplateError:
        return TemplateError(f"{{{{{self._action}}}}}: {problem}")

    def _take(self) -> Token:
        return self._tokens.pop(0) if self._tokens else Token("", "")

    def _is_next(self, sign: str) -> bool:
        return bool(self._tokens) and self._tokens[0] == Token("sign", sign)

    def _finish(self) -> None:
        if self._tokens:
            raise self._wrong(f"nothing can follow before {self._tokens[0].text!r}")

    def _output(self, known: set[str]) -> Node:
        if len(self._tokens) > 1 and self._tokens[0].kind == "variable" and self._tokens[1].text == ":=":
            name = self._new_name(self._take())
            self._take()
            value = self._pipeline(known)
            self._finish()
            known.add(name)
            return _declaration(name, value)
        value = self._pipeline(known)
        self._finish()
        return lambda scope: shown(value(scope))

    def _new_name(self, token: Token) -> str:
        if token.kind != "variable" or "." in token.text or token.text == "$":
            raise self._wrong(f"expected a variable such as $x; found: {token.text or 'nothing'!r}")
        return token.text

    def _structure(self, word: str, known: set[str]) -> Node:
        self._depth += 1
        if self._depth > NESTING_MAX:
            raise self._wrong(f"more than {NESTING_MAX} blocks in each other")
        opening = self._action
        names = self._names(most=2 if word == "range" else 1)
        value = self._pipeline(known)
        self._finish()
        body, end = self._block({*known, *names})
        other: list[Node] = []
        if end == "else":
            if self._tokens and self._tokens[0].text in ("if", "with"):
                other = [self._structure(self._take().text, known)]  # it reads the end of both
                self._depth -= 1
                return _STRUCTURES[word](value, names, body, other)
            self._finish()
            other, end = self._block(set(known))
        if end != "end":
            raise TemplateError(f"{{{{{opening}}}}} has no {{{{end}}}}")
        self._finish()
        self._depth -= 1
        return _STRUCTURES[word](value, names, body, other)

    def _names(self, most: int) -> list[str]:
        """``$value :=``, or of a range ``$index, $element :=``, if it is there."""
        if not any(token.text == ":=" for token in self._tokens):
            return []
        names = [self._new_name(self._take())]
        if most > 1 and self._is_next(","):
            self._take()
            names.append(self._new_name(self._take()))
        if self._take().text != ":=":
            raise self._wrong("expected := after the variables")
        return names

    def _pipeline(self, known: set[str]) -> Value:
        value = self._command(known, None)
        while self._is_next("|"):
            self._take()
            value = self._command(known, value)
        return value

    def _command(self, known: set[str], piped: Value | None) -> Value:
        if self._tokens and self._tokens[0].kind == "word" and self._tokens[0].text not in _WORDS:
            name = self._take().text
            if name not in FUNCTIONS:
                near = difflib.get_close_matches(name, FUNCTIONS, n=1)
                raise self._wrong(f"there is no function {name}" + (f"; did you mean {near[0]}?" if near else ""))
            arguments = []
            while self._tokens and self._tokens[0].kind != "close" and not self._is_next("|"):
                arguments.append(self._operand(known))
            return _called(name, [*arguments, *([piped] if piped else [])])
        if piped is not None:
            raise self._wrong("expected a function after |")
        return self._operand(known)

    def _operand(self, known: set[str]) -> Value:
        kind, text = self._take()
        if kind == "field":
            return _fields(text, lambda scope: scope["."])
        if kind == "variable":
            name, _, fields = text.partition(".")
            if name != "$" and name not in known:
                raise self._wrong(f"{name} is not declared")
            return _fields(fields, lambda scope: scope[name])
        if (kind, text) == ("sign", "."):
            return lambda scope: scope["."]
        if (kind, text) == ("sign", "("):
            self._depth += 1
            if self._depth > NESTING_MAX:
                raise self._wrong(f"more than {NESTING_MAX} parentheses in each other")
            value = self._pipeline(known)
            kind, text = self._take()
            if kind != "close":
                raise self._wrong("expected )")
            self._depth -= 1
            return _fields(text[1:], value)
        return self._literal(kind, text)

    def _literal(self, kind: str, text: str) -> Value:
        found: Any
        if kind == "string" and text.startswith("`"):
            found = text[1:-1]
        elif kind == "string":
            try:
                found = json.loads(text)
            except ValueError:
                raise self._wrong(f"cannot read the text {text}") from None
        elif kind == "number":
            found = float(text) if "." in text else int(text)
        elif text in _WORDS:
            found = _WORDS[text]
        else:
            raise self._wrong(f"expected a field, a variable or a literal; found: {text or 'nothing'!r}")
        return lambda scope: found


def _pieces(source: str) -> list[tuple[str, str | None]]:
    """(text, action that follows it), trimmed as the markers say; no action after the last, None for a comment."""
    pieces: list[tuple[str, str | None]] = []
    at = 0
    is_trimmed = False
    for match in _ACTION.finditer(source):
        text = source[at : match.start()]
        text = text.lstrip() if is_trimmed else text
        before, action, after = match.groups()
        pieces.append((text.rstrip() if before else text, None if action.startswith("/*") else action.strip()))
        is_trimmed = after is not None
        at = match.end()
    rest = source[at:]
    if "{{" in rest:
        raise TemplateError(f"expected }}}} after {rest[rest.index('{{') :][:40]!r}")
    pieces.append((rest.lstrip() if is_trimmed else rest, None))
    return pieces


def _if(value: Value, names: list[str], body: list[Node], other: list[Node]) -> Node:
    def node(scope: Scope) -> str:
        found = value(scope)
        return _text(body, {**scope, **dict.fromkeys(names, found)}) if found else _text(other, dict(scope))

    return node


def _with(value: Value, names: list[str], body: list[Node], other: list[Node]) -> Node:
    def node(scope: Scope) -> str:
        found = value(scope)
        return _text(body, {**scope, **dict.fromkeys(names, found), ".": found}) if found else _text(other, dict(scope))

    return node


def _range(value: Value, names: list[str], body: list[Node], other: list[Node]) -> Node:
    def node(scope: Scope) -> str:
        found = value(scope)
        if isinstance(found, dict):
            items = [(key, found[key]) for key in sorted(found)]
        elif isinstance(found, list) or found is None:
            items = list(enumerate(found or ()))
        else:
            raise TemplateError(f"range: expected a list or an object; found: {shown(found)[:100]}")
        if not items:
            return _text(other, dict(scope))
        parts = []
        for item in items:
            variables = dict(zip(names, item[-len(names) :], strict=True)) if names else {}
            parts.append(_text(body, {**scope, ".": item[1], **variables}))
        return "".join(parts)

    return node


_STRUCTURES = {"if": _if, "with": _with, "range": _range}
