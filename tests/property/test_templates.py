"""Templates of ``weave report -f``: any text at all."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from weavenet.cli.template import TemplateError, parse

REPORT = {"IPAM": {"Range": "10.32.0.0/12", "Entries": [{"Size": 1}, {"Size": None}]}, "Ready": True}
WORDS = [
    "{{",
    "}}",
    "{{-",
    "-}}",
    ".",
    ".IPAM",
    ".IPAM.Entries",
    ".Size",
    "$",
    "$x",
    ":=",
    ",",
    "|",
    "(",
    ")",
    "range",
    "if",
    "else",
    "end",
    "with",
    "len",
    "json",
    "index",
    "printf",
    '"%v"',
    "`",
    '"',
    "1",
    "/*",
    "*/",
    "x",
    "%d",
    "nil",
    "true",
]
texts = st.lists(st.sampled_from([*WORDS, " "]) | st.text(max_size=3), max_size=25).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda each: st.lists(each) | st.dictionaries(st.text(), each),
)


@given(texts)
def test_any_text_is_a_template_or_refused(template: str) -> None:
    try:
        assert isinstance(parse(template).render(REPORT), str)
    except TemplateError as error:
        assert str(error)


@given(values)
def test_json_prints_what_reads_back(value: Any) -> None:
    assert json.loads(parse("{{json .}}").render(value)) == value
