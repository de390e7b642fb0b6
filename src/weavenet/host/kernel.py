"""The kernel of one namespace as this product sees it: requests, the cache of links, and where they are."""

from __future__ import annotations

from weavenet.host.links import LinkCache
from weavenet.host.netlink import Netlink


class Kernel:
    """``namespace``: file descriptor (None: our own); the caller keeps it open while the kernel is in use."""

    def __init__(self, netlink: Netlink, links: LinkCache, namespace: int | None) -> None:
        self.netlink = netlink
        self.links = links
        self.namespace = namespace

    @classmethod
    async def open(cls, namespace: int | None = None) -> Kernel:
        """Raises OSError or TimeoutError."""
        links = LinkCache(namespace)
        await links.open()
        try:
            netlink = await Netlink.open(namespace)
        except BaseException:
            links.close()
            raise
        return cls(netlink, links, namespace)

    def close(self) -> None:
        self.links.close()
        self.netlink.close()

    async def __aenter__(self) -> Kernel:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
