"""What became of datagrams and frames that were not delivered; the names are those of the metrics."""

from __future__ import annotations


class Counts:
    """Since the worker started."""

    __slots__ = (
        "forged",
        "incomplete",
        "malformed",
        "not_open",
        "refused",
        "relayed",
        "replayed",
        "unknown",
        "unwritten",
    )

    def __init__(self) -> None:
        self.malformed = self.unknown = self.replayed = self.forged = 0
        self.refused = self.not_open = self.incomplete = self.relayed = self.unwritten = 0

    def as_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}
