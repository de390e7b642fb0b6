"""Opened frames into the TAP device, if their peer may send them and the kernel may be given them."""

from __future__ import annotations

import errno
import os

from weavenet.sleeve.counts import Counts
from weavenet.sleeve.flows import HEADERS_BYTES, PACKETS_MAX, flow_of, headers_of, joins
from weavenet.sleeve.session import Session
from weavenet.sleeve.tap import VNET_BYTES
from weavenet.sleeve.units import valid_vnet


class Delivery:
    """Of one TAP device."""

    def __init__(self, tap: int, counts: Counts) -> None:
        self.tap = tap
        self._counts = counts
        self._takes_flows = True

    def frame(self, session: Session, frame: memoryview) -> None:
        """One frame."""
        length = len(frame)
        if not session.is_open:
            self._counts.not_open += 1
        elif not valid_vnet(frame, length):
            self._counts.refused += 1
        else:
            session.received_bytes += length - VNET_BYTES
            self.write(frame)

    def write(self, frame: memoryview) -> None:
        """What was checked already."""
        try:
            os.write(self.tap, frame)
        except OSError:  # the device is down, or the kernel refuses the frame
            self._counts.unwritten += 1

    def batch(self, session: Session, plain: memoryview) -> None:
        """The frames of a batch, in order; packets of one UDP flow that follow each other together."""
        at, length = 0, len(plain)
        flow, gathered = b"", []  # type: bytes, list[memoryview]
        takes_flows = self._takes_flows
        while at + 2 + VNET_BYTES <= length:
            size = (plain[at] << 8 | plain[at + 1]) + VNET_BYTES
            if at + 2 + size > length:
                break
            frame = plain[at + 2 : at + 2 + size]
            at += 2 + size
            if gathered and len(gathered) < PACKETS_MAX and joins(frame, flow):
                gathered.append(frame)
                continue
            if gathered:
                self._flow(session, gathered)
                gathered = []
            flow = flow_of(frame) if takes_flows else b""
            if flow:
                gathered.append(frame)
            else:
                self.frame(session, frame)
        if gathered:
            self._flow(session, gathered)
        if at != length:
            self._counts.refused += 1

    def _flow(self, session: Session, frames: list[memoryview]) -> None:
        if len(frames) == 1 or not session.is_open:
            for frame in frames:
                self.frame(session, frame)
            return
        payload = [frame[HEADERS_BYTES:] for frame in frames]
        each = len(payload[0])
        total = each * len(payload)
        try:
            os.writev(self.tap, [headers_of(frames[0], total, each), *payload])
        except OSError as error:
            if error.errno == errno.EINVAL:
                self._takes_flows = False  # an older kernel
            for frame in frames:
                self.frame(session, frame)
            return
        session.received_bytes += total + len(frames) * (HEADERS_BYTES - VNET_BYTES)
