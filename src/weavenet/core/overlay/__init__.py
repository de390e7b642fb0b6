"""Which data path leads to which peer: the handover before a path opens, its heartbeats, and the plane's desired
state."""

from weavenet.core.overlay.endpoints import Endpoints
from weavenet.core.overlay.gate import Gate
from weavenet.core.overlay.handover import Handover
from weavenet.core.overlay.openplanes import OpenPlanes
from weavenet.core.overlay.paths import Paths, PathState

__all__ = ["Endpoints", "Gate", "Handover", "OpenPlanes", "PathState", "Paths"]
