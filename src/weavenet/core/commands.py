"""Commands of the control API to the node, and their results. Addresses are text here (CIDR where a prefix matters)."""

from __future__ import annotations

import msgspec

from weavenet.core.errors import Failure
from weavenet.core.report import Explanation, NodeReport


class Allocate(msgspec.Struct, frozen=True):
    """An address for ``ident`` in ``subnet`` (CIDR; empty: one in the default subnet of each range). The same ident and
    subnet get the same address again. Waits without limit for the ring and for space. Result: ``Addresses``, in the
    order of the ranges."""

    ident: str
    subnet: str = ""


class Claim(msgspec.Struct, frozen=True):
    """``ident`` uses exactly ``address`` (``ip/prefix``). In range: owned or obtained from its owner; out of range:
    recorded."""

    ident: str
    address: str


class Release(msgspec.Struct, frozen=True):
    """Free the given addresses (no prefix), or all of ``ident`` when empty. Result: ``Addresses`` that were freed."""

    ident: str
    addresses: tuple[str, ...] = ()


class Lookup(msgspec.Struct, frozen=True):
    """Addresses of ``ident``, or every held address when empty. Result: ``Addresses`` or ``Holdings``."""

    ident: str = ""
    subnet: str = ""


class Died(msgspec.Struct, frozen=True):
    """The container's process is gone: keep its addresses 30 s. ``Revived`` within that time keeps them."""

    ident: str


class Revived(msgspec.Struct, frozen=True):
    ident: str


class Attachment(msgspec.Struct, frozen=True, array_like=True):
    """What was asked for, and remembered. ``requested``: the addr arguments as given (empty: default subnet).
    ``addresses``: what it has, CIDR text. ``live``: the interface exists now, so its MAC is announced."""

    ident: str
    container: str
    mac: bytes
    requested: tuple[str, ...]
    addresses: tuple[str, ...]
    multicast_route: bool
    live: bool
    rewrite_hosts: bool = False
    """A block of its /etc/hosts is ours to keep: ``hosts_name`` with its addresses, and ``hosts``."""
    hosts: tuple[str, ...] = ()
    """``NAME:ADDRESS`` each."""
    masquerade: bool = True
    """Of ``weave:expose`` only, and so are those about forwarding. False, of an earlier version: in no subnet."""
    forwarding_switched: bool = False
    """This host forwarded nothing before we asked it to."""
    hosts_name: str = ""
    """What it is called, absolute; empty when it has no name that fits into the domain."""
    redirects_accepted: bool = False
    """It took ICMP redirects before forwarding was switched."""
    unmasqueraded: tuple[str, ...] = ()
    """Subnets (CIDR) of ``addresses`` without masquerading."""
    kept: tuple[str, ...] = ()
    """While a call gives it more addresses, or takes some: all it holds that does not depend on how that ends. If the
    call ends with its daemon, the next one gives back the rest. Empty: there is no such call."""


class Destroyed(msgspec.Struct, frozen=True):
    """The container is gone: free its addresses at once, and forget its attachment, or keep ``remembered`` of it: what
    was asked for under a name that may come back, names included."""

    ident: str
    remembered: Attachment | None = None


class PutAttachment(msgspec.Struct, frozen=True):
    """``name``: what its addresses are registered under besides what was registered before, or empty."""

    attachment: Attachment
    name: str = ""


class RemoveAttachment(msgspec.Struct, frozen=True):
    """Forgets the attachment and withdraws its endpoint; addresses are freed by ``Release``."""

    ident: str


class ListAttachments(msgspec.Struct, frozen=True):
    """Result: ``Attachments``."""


class AddName(msgspec.Struct, frozen=True):
    """``name`` (a single label is one below the domain) stands for ``addresses`` (no prefix), or for all that the
    attachment ``ident`` has, from time to time, when empty. ``ident`` may be ``weave:external``."""

    name: str
    ident: str
    addresses: tuple[str, ...] = ()


class RemoveName(msgspec.Struct, frozen=True):
    """``name`` empty: every name of ``ident``. ``addresses`` empty: all of them."""

    name: str
    ident: str
    addresses: tuple[str, ...] = ()


class LookupName(msgspec.Struct, frozen=True):
    """Result: ``Addresses`` without prefix; of any host that can be reached."""

    name: str


class Connect(msgspec.Struct, frozen=True):
    targets: tuple[str, ...]
    replace: bool = False


class Forget(msgspec.Struct, frozen=True):
    targets: tuple[str, ...]


class Consense(msgspec.Struct, frozen=True):
    """Force the initial division of addresses; answered when genesis and ring are durable here. A peer that may vote
    and is no elector yet becomes one by decree first. Result: ``Done`` whose text is the role: ``voter``, ``standby``
    or ``member, not elector``."""


class RemovePeers(msgspec.Struct, frozen=True):
    """Assert that peers are dead, so that their addresses go to an heir (``rmpeer``).

    ``names``: label, nickname or hex PeerId each. ``all_unreachable``: everybody unreachable for ``older_than_s``.
    ``force``: skip the question whether a quorum still sees them, and end a hold; without a quorum, open a new epoch.
    ``wait``: answered when their addresses are usable again; else as soon as the proposal is durable. While it waits,
    ``IpamReport.removals`` says for what. A cancelled command leaves the durable proposal behind, which is validated
    again before it is decided.

    Result: ``Done`` (removed, or removed before: says in whose favour), or ``Failure`` (unknown, ambiguous, ourselves,
    reachable, or back)."""

    names: tuple[str, ...] = ()
    force: bool = False
    all_unreachable: bool = False
    older_than_s: float = 0.0
    wait: bool = True


class Reset(msgspec.Struct, frozen=True):
    """Leave for good: first find who takes the addresses and, if this peer may vote, have a decree without it; then,
    and from there on without a way back, take containers off the network, give all space away and have that confirmed.
    Cancelled before that, everything is as it was; after it, it goes on by itself. ``force``: leave at once and
    confirm nothing.

    Result: ``Done`` when nothing here is needed any more; ``Depart`` follows. ``IpamReport.leaving`` says what is
    missing."""

    force: bool = False


class Vacated(msgspec.Struct, frozen=True):
    """``Vacate`` was carried out. Result: ``Done``."""


class GetReport(msgspec.Struct, frozen=True):
    """Result: ``NodeReport``. ``with_names``: list the names too, of which there may be very many."""

    with_names: bool = True


class Explain(msgspec.Struct, frozen=True):
    """Can ``source`` talk to ``target``? Each is a container, an address, a name or a peer. Result: ``Explanation``."""

    source: str
    target: str


Command = (
    Allocate
    | Claim
    | Release
    | Lookup
    | Died
    | Revived
    | Destroyed
    | PutAttachment
    | RemoveAttachment
    | ListAttachments
    | Connect
    | Forget
    | Consense
    | GetReport
    | Explain
    | RemovePeers
    | AddName
    | RemoveName
    | LookupName
    | Reset
    | Vacated
)


class Done(msgspec.Struct, frozen=True):
    text: str = ""


class Addresses(msgspec.Struct, frozen=True):
    """CIDR text each. ``note``: a sentence for whoever asked, as a rule empty."""

    addresses: tuple[str, ...]
    note: str = ""


class Holdings(msgspec.Struct, frozen=True):
    holdings: tuple[tuple[str, tuple[str, ...]], ...]


class Attachments(msgspec.Struct, frozen=True):
    attachments: tuple[Attachment, ...]


Result = Done | Addresses | Holdings | Attachments | NodeReport | Explanation | Failure
