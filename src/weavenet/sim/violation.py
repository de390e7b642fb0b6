"""What a checker raises: a history that must not exist."""

from __future__ import annotations


class Violation(Exception):
    """``rule`` names the invariant (I1 … I7 of the specification, or a word for ours), ``text`` what was seen."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
        self.text = text
