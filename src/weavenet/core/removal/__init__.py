"""Removing peers that are gone for good: asking for it, what the heir has to collect, what the removed peer keeps."""

from weavenet.core.removal.attests import Attests
from weavenet.core.removal.collect import Collect, CollectMessage
from weavenet.core.removal.fence import Rejoin, fenced_disk, rejoin_of
from weavenet.core.removal.known import Known
from weavenet.core.removal.proposal import RemovalMessage, Removals

__all__ = [
    "Attests",
    "Collect",
    "CollectMessage",
    "Known",
    "Rejoin",
    "RemovalMessage",
    "Removals",
    "fenced_disk",
    "rejoin_of",
]
