"""Which peer an operator means: by label, nickname or hex PeerId, never by guessing.

Labels may repeat (a reinstalled host keeps its name), so a name that fits several peers is refused with their PeerIds.
Only peers that nothing is left to do about step back behind one that is there: a host that was removed, or left, and
came back is called as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from weavenet.core.errors import Code, Failure
from weavenet.core.types import PeerId, peer_text
from weavenet.core.words import titled


class Named(NamedTuple):
    """A peer one may speak of. ``votes_as``: the virtual id of the seed that it stands for, or empty."""

    peer: PeerId
    name: str
    nickname: str
    votes_as: bytes = b""

    @property
    def title(self) -> str:
        """Names and PeerId."""
        return f"{titled(self.name, self.nickname)} {peer_text(self.peer)}".strip()

    @property
    def short_title(self) -> str:
        """Names; the PeerId only where none was ever heard."""
        return titled(self.name, self.nickname) or peer_text(self.peer)


def resolve(text: str, directory: Iterable[Named], is_over: Callable[[PeerId], bool]) -> PeerId | Failure:
    """The one peer of ``directory`` that ``text`` names; of several, the one that is not over."""
    wanted = text.strip().lower()
    fitting = {
        known.peer: known
        for known in directory
        if wanted and wanted in {peer_text(known.peer), known.name.lower(), known.nickname.lower()}
    }
    if not fitting:
        return Failure(
            Code.NOT_FOUND,
            "expected the name, nickname or PeerId of a peer of this cluster",
            repr(text),
            "see `weave status peers` and `weave status ipam`",
        )
    if len(fitting) > 1:
        fitting = {peer: known for peer, known in fitting.items() if not is_over(peer)} or fitting
    if len(fitting) > 1:
        listed = ", ".join(fitting[peer].title for peer in sorted(fitting))
        return Failure(
            Code.INVALID,
            f"expected a name of one peer, {text!r} fits {len(fitting)}",
            listed,
            "give the PeerId instead",
        )
    return next(iter(fitting))
