"""Leaving for good: what the leaver does, what others remember of it, what stays on its disk."""

from weavenet.core.leaving.departed import Departed
from weavenet.core.leaving.leaving import Leaving
from weavenet.core.leaving.phases import Phase, State
from weavenet.core.leaving.wipe import departed_disk

__all__ = ["Departed", "Leaving", "Phase", "State", "departed_disk"]
