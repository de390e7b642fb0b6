"""Ephemeral peers (``--ephemeral TTL``): what such a peer may do without a lease, and how voters give up on it."""

from weavenet.core.lease.leasing import Leasing

__all__ = ["Leasing"]
