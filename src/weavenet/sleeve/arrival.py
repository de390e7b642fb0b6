"""What one receive brought: the headers of its datagrams one after the other, and their bodies one after the other.

The kernel puts them so (a list of places in two buffers, made for the size of datagram that came last), because then
a unit's headers are compared in one look and the fragments of a sealed frame are together without being copied.
Where datagrams of another size came, they are moved, and the next receive expects that size.
"""

from __future__ import annotations

from weavenet.sleeve.memory import Buffer, Pairs
from weavenet.sleeve.wire import HEADER_BYTES, INDEX_AT, LAST_AT

BATCH_BYTES_MAX = 1 << 16
STRIDE_FIRST = 1472
EXPECTED_STRIDE_MIN, EXPECTED_COUNT_MIN = 512, 8
"""What comes in smaller pieces, or in fewer, is moved instead of expected."""
LAYOUTS_MAX = 16
"""Sizes of datagrams for which places are kept."""
_INDICES = bytes(range(256))


class Layout:
    """Places for datagrams of ``stride`` bytes."""

    def __init__(self, headers: Buffer, bodies: Buffer, stride: int) -> None:
        self.stride = stride
        count = -(-BATCH_BYTES_MAX // stride)
        size = stride - HEADER_BYTES
        self.pairs = Pairs(headers, HEADER_BYTES, bodies, size, count)
        self.bodies = [bodies.view[number * size : (number + 1) * size] for number in range(count)]


class Arrival:
    """``count`` datagrams of ``stride`` bytes, the last of ``last_bytes``. ``headers``: HEADER_BYTES of each.
    ``bodies``: a view of each; that of the last may reach too far, see :meth:`body`. Nothing when ``stride`` is not
    more than a header."""

    def __init__(self) -> None:
        self._header_buffer = Buffer(BATCH_BYTES_MAX)
        self._body_buffer = Buffer(BATCH_BYTES_MAX)
        self.headers = self._header_buffer.view
        self._memory = self._body_buffer.view
        self._layouts: dict[int, Layout] = {}
        self.expected = self._layout(STRIDE_FIRST)
        """Where the next receive puts what it brings."""
        self.bodies = self.expected.bodies
        self.count = self.stride = self.last_bytes = 0

    def _layout(self, stride: int) -> Layout:
        found = self._layouts.get(stride)
        if found is None:
            if len(self._layouts) >= LAYOUTS_MAX:
                self._layouts.clear()
            found = self._layouts[stride] = Layout(self._header_buffer, self._body_buffer, stride)
        return found

    def came(self, length: int, stride: int) -> None:
        """``length`` bytes lie in the places of ``expected``, in datagrams of ``stride``."""
        layout = self.expected
        self.stride = stride
        self.count = count = -(-length // stride)
        self.last_bytes = length - (count - 1) * stride
        if stride == layout.stride or (count == 1 and length <= layout.stride):
            self.bodies = layout.bodies
        elif stride > HEADER_BYTES:
            pieces: list[memoryview] = []
            for number in range(-(-length // layout.stride)):
                pieces += self.headers[number * HEADER_BYTES : (number + 1) * HEADER_BYTES], layout.bodies[number]
            self._place(b"".join(pieces))

    def place(self, data: bytes, stride: int) -> None:
        """As if ``data`` had been received in datagrams of ``stride``."""
        self.stride = stride = max(1, stride)
        self.count = -(-len(data) // stride)
        self.last_bytes = len(data) - (self.count - 1) * stride
        if data and stride > HEADER_BYTES:
            self._place(data)

    def _place(self, data: bytes) -> None:
        stride, count, size = self.stride, self.count, self.stride - HEADER_BYTES
        headers, memory = self.headers, self._memory
        for number in range(count):
            at = number * stride
            end = at + (stride if number < count - 1 else self.last_bytes)
            head = data[at : min(at + HEADER_BYTES, end)]
            headers[number * HEADER_BYTES : number * HEADER_BYTES + len(head)] = head
            body = data[at + HEADER_BYTES : end]
            memory[number * size : number * size + len(body)] = body
        if stride >= EXPECTED_STRIDE_MIN and count >= EXPECTED_COUNT_MIN:
            self.expected = self._layout(stride)
            self.bodies = self.expected.bodies
        else:
            self.bodies = [memory[number * size : (number + 1) * size] for number in range(count)]

    def body(self, number: int) -> memoryview:
        """What follows the header of one datagram; empty for one that is all header."""
        if number < self.count - 1:
            return self.bodies[number]
        return self.bodies[number][: max(0, self.last_bytes - HEADER_BYTES)]

    def together(self, first: int, count: int) -> memoryview:
        """The bodies of ``count`` datagrams in one piece."""
        size = self.stride - HEADER_BYTES
        end = (first + count) * size
        if first + count == self.count:
            end += self.last_bytes - self.stride
        return self._memory[first * size : end]

    def following(self, first: int) -> int:
        """How many datagrams from ``first`` on belong to one unit, one after the other: their headers are the same
        but for index, which counts up. At least 1."""
        at = first * HEADER_BYTES
        header = self.headers[at : at + HEADER_BYTES].tobytes()
        index = header[INDEX_AT]
        count = min(self.count - first, header[LAST_AT] + 1 - index)
        if count > 1 and first + count == self.count and self.last_bytes <= HEADER_BYTES:
            count -= 1
        if count <= 1:
            return 1
        due = bytearray(header * count)
        due[INDEX_AT::HEADER_BYTES] = _INDICES[index : index + count]
        found = self.headers[at : at + len(due)].tobytes()
        if found == due:
            return count
        low, high = 1, count  # the first `low` are as due, not all of the first `high`
        while high - low > 1:
            middle = (low + high) // 2
            if found[: middle * HEADER_BYTES] == due[: middle * HEADER_BYTES]:
                low = middle
            else:
                high = middle
        return low

    def relayable(self) -> Pairs:
        """The datagrams as they lie, to be sent on."""
        layout = self._layouts.get(self.stride)
        if layout is not None:
            return layout.pairs
        return Pairs(self._header_buffer, HEADER_BYTES, self._body_buffer, self.stride - HEADER_BYTES, self.count)
