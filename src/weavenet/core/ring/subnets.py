"""What a subnet or an address argument means within the cluster's ranges, or why it is refused.

Pure functions of text; nothing here knows who owns or uses an address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import msgspec

from weavenet.core.errors import Code, Failure
from weavenet.core.limits import SUBNET_ADDRESSES_MIN
from weavenet.core.ranges import Ranges
from weavenet.core.types import AddressRange


class Window(msgspec.Struct, frozen=True):
    """A subnet clipped to the range of its family in ``area``: offsets [first, stop) may be allocated (the first and
    last address of the subnet itself never are)."""

    area: Ranges
    cidr: str
    prefix_length: int
    first: int
    stop: int


class Place(msgspec.Struct, frozen=True):
    """An explicitly named address with its prefix; ``offset`` is None outside the range."""

    address: str
    cidr: str
    prefix_length: int
    offset: int | None

    @property
    def text(self) -> str:
        return f"{self.address}/{self.prefix_length}"


def default_windows(area: Ranges, default_subnets: Sequence[str]) -> tuple[Window, ...] | Failure:
    """Where a container that asks for nothing particular gets addresses: one window per range, in their order: the
    default subnet of its family, else the whole range."""
    windows = []
    for cidr in default_cidrs(area, default_subnets):
        window = subnet_window(area, cidr)
        if isinstance(window, Failure):
            return window
        windows.append(window)
    return tuple(windows)


def default_cidrs(area: Ranges, default_subnets: Sequence[str]) -> tuple[str, ...]:
    """The subnets behind :func:`default_windows`."""
    chosen = {AddressRange.parse(text).version: text for text in default_subnets}
    return tuple(chosen.get(part.version, part.cidr) for part in area.areas)


def subnet_window(area: Ranges, text: str) -> Window | Failure:
    """The allocatable part of the subnet ``text`` within ``area``."""
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError as error:
        return Failure(Code.INVALID, "expected a subnet such as 10.32.1.0/24", f"{text!r}: {error}")
    network = interface.network
    if interface.ip != network.network_address:
        next_step = f"use {network.with_prefixlen} for the subnet"
        return Failure(Code.INVALID, "expected a subnet without host bits", text, next_step)
    if network.num_addresses < SUBNET_ADDRESSES_MIN:
        found = f"{network.with_prefixlen} has {network.num_addresses}"
        return Failure(Code.INVALID, f"expected a subnet of at least {SUBNET_ADDRESSES_MIN} addresses", found)
    subnet = AddressRange(network.version, int(network.network_address), network.prefixlen)
    window = area.window(subnet)
    if window is None:
        return Failure(
            Code.OUT_OF_RANGE,
            f"expected a subnet that overlaps the allocation range {area.text}",
            network.with_prefixlen,
            "allocate inside the range, or give the address yourself as IP/PREFIX",
        )
    low, high = window
    first = low + (area.address(low) == str(network.network_address))
    stop = high - (area.address(high - 1) == str(network.broadcast_address))
    return Window(area, network.with_prefixlen, network.prefixlen, first, stop)


def claimed_place(area: Ranges | None, text: str) -> Place | Failure:
    """What the claim of ``text`` (``ip/prefix``) names. The two addresses of an in-range subnet that no host may have
    are refused; outside the range everything is the operator's business."""
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError as error:
        return Failure(Code.INVALID, "expected an address such as 10.32.1.5/24", f"{text!r}: {error}")
    network = interface.network
    address = str(interface.ip)
    offset = area.offset(address) if area is not None else None
    if offset is not None and network.num_addresses >= SUBNET_ADDRESSES_MIN:
        ends = (network.network_address, network.broadcast_address)
        if interface.ip in ends:
            return Failure(
                Code.INVALID,
                f"expected an address that a host in {network.with_prefixlen} may have",
                f"{address} is the {'first' if interface.ip == ends[0] else 'last'} of the subnet",
                "choose one in between",
            )
    return Place(address, network.with_prefixlen, network.prefixlen, offset)
