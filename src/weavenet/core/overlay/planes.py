"""The data paths by name. Imports nothing: the command line checks ``--no-fastdp`` and the like against them.

``fastdp``: kernel VXLAN; ``wireguard``: the same over a WireGuard device; ``sleeve``: encrypted in user space.
"""

FASTDP, WIREGUARD, SLEEVE = "fastdp", "wireguard", "sleeve"
PREFERENCE = (FASTDP, WIREGUARD, SLEEVE)
"""Best first."""
