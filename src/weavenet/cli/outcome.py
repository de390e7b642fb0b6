"""How a verb ends: exit statuses, and the one exception that carries a sentence for the person.

Imports nothing that takes time, so that the quick path can use it.
"""

import os
import sys

from weavenet.core.plain import plain, plain_lines

OK = 0
ERROR = 1
LIMIT = 2
"""A timeout or threshold was reached."""
RUNNING = 3
"""Already running."""
ABSENT = 4
"""Not found, or that part is switched off."""

_BY_CODE = {"not-found": ABSENT, "ipam-off": ABSENT, "timeout": LIMIT}


class Ended(Exception):
    """The verb is over: ``status`` for the shell and ``sentence`` for stderr (may be empty)."""

    def __init__(self, status: int, sentence: str = "") -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence

    def told(self) -> str:
        """The sentence at the moment when it is shown."""
        return self.sentence


def status_of(code: str) -> int:
    """Exit status of a ``Failure.code``."""
    return _BY_CODE.get(code, ERROR)


def sentence_of(failure: dict[str, object]) -> str:
    """``Failure`` as JSON -> what was expected, what was found, what to run next, on lines of their own."""
    lines = [str(failure.get("expected", "the daemon refused"))]
    lines += [
        f"  {label}: {failure[key]}" for key, label in (("found", "found"), ("next_step", "next")) if failure.get(key)
    ]
    return "\n".join(map(plain, lines))


def spoken(sentence: str) -> str:
    """A sentence as it goes to stderr, with our name before it once."""
    return sentence if sentence.startswith("weave ") else f"weave: {sentence}"


def tell(text: str) -> None:
    """A line on stderr. What is done, and the exit status, do not depend on whether it can be written: the log that it
    goes to may be on the disk that is full."""
    try:
        print(plain_lines(text), file=sys.stderr, flush=True)
    except OSError:
        # The interpreter would try to write it once more when it ends, and change the exit status.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
