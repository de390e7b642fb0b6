"""The mesh: links to other peers, what is replicated over them, and the ways to those without a link."""

from weavenet.core.mesh.changes import MeshChanges
from weavenet.core.mesh.mesh import Mesh
from weavenet.core.mesh.shared import HelloFields, Shared

__all__ = ["HelloFields", "Mesh", "MeshChanges", "Shared"]
