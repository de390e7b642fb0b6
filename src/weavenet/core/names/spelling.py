"""What a name may look like. Pure functions of text.

A name is absolute (trailing dot), ASCII, of labels of letters, digits, hyphens and underscores (RFC 1123, section 2.1,
and the underscore of RFC 2782), below our domain. Its spelling is kept; case makes no difference (RFC 4343).
"""

from __future__ import annotations

import re

from weavenet.core.errors import Code, Failure
from weavenet.core.limits import NAME_CHARACTERS_MAX, NAME_LABEL_CHARACTERS_MAX

_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?")


def folded(name: str) -> str:
    """By which names are compared; ``name`` is ASCII."""
    return name.lower()


def name_problem(name: str) -> str:
    """Why ``name`` (absolute, with trailing dot) can be none, or an empty string."""
    text = name.removesuffix(".")
    if not text or len(text) > NAME_CHARACTERS_MAX:
        return f"a name has 1 to {NAME_CHARACTERS_MAX} characters"
    for label in text.split("."):
        if not label.isascii():
            return f"{label!r} is not ASCII; write it as the DNS does (xn--…)"
        if len(label) > NAME_LABEL_CHARACTERS_MAX:
            return f"{label[:12]!r}… has more than {NAME_LABEL_CHARACTERS_MAX} characters between dots"
        if label.startswith("-") or label.endswith("-"):
            return f"{label!r} begins or ends with a hyphen"
        if not _LABEL.fullmatch(label):
            return f"{label!r} is not made of letters, digits, hyphens and underscores"
    return ""


def is_below(name: str, domain: str) -> bool:
    """Whether ``name`` is in ``domain``; both absolute."""
    lower = folded(name)
    return lower.endswith("." + domain) or lower == domain


def absolute_name(text: str, domain: str) -> str | Failure:
    """The name meant by ``text``: a single label is one below ``domain``; the trailing dot may be missing."""
    relative = text.removesuffix(".")
    name = f"{relative}.{domain}" if relative and "." not in relative else f"{relative}."
    problem = name_problem(name)
    if problem:
        return Failure(Code.INVALID, f"expected a name such as web.{domain}", f"{text[:80]!r}: {problem}")
    if folded(name) == domain:
        step = f"put a label before it, as in web.{domain}"
    elif not is_below(name, domain):
        step = f"name it {relative}.{domain} or {relative.partition('.')[0]}.{domain}, or launch with --dns-domain"
    else:
        return name
    return Failure(Code.INVALID, f"expected a name below the domain {domain}", text[:80], step)


def known_name(text: str, domain: str) -> str | Failure:
    """The name of something registered that is meant by ``text``: also one of several labels may go without the domain,
    as in ``status dns``. A new name may not: ``db.example.com`` would become one below our domain."""
    is_complete = not text or text.endswith(".") or is_below(f"{text}.", domain)
    return absolute_name(text if is_complete else f"{text}.{domain}", domain)
