"""Every bound of the product: value, unit, and why. What happens when a bound is reached is said beside it."""

from __future__ import annotations

# --- protocol ---
PROTOCOL_MIN = 1
PROTOCOL_MAX = 1
PORT_DEFAULT = 6783
VXLAN_PORT = 6784
VXLAN_VNI = 6784
BRIDGE = "weave"
"""The bridge that containers and the devices of all data paths are ports of."""
DNS_ADDRESS = "169.254.53.53"
"""Where containers of every host ask, and the DNS server of that host answers."""
SLEEVE_DEVICE = "weave-sleeve"
"""The TAP device of the sleeve worker, a port of the bridge."""
WIREGUARD_DEVICE = "weave-wg"
WIREGUARD_PORT_OFFSET = 2
"""UDP port of WireGuard beyond that of the control links: 6785."""
HEARTBEAT_ETHERTYPE = 0x88B5
"""IEEE 802 local experimental ethertype 1."""

# --- links ---
HELLO_BYTES_MAX = 16 * 1024
"""Before a link is up nobody may make us hold more; a longer frame closes the connection."""
MESSAGE_BYTES_MAX = 256 * 1024
"""One framed message. Larger state is paged; a longer frame closes the link with a refusal."""
PAGE_BYTES_MAX = 64 * 1024
"""Senders split gossip and ring pages at this size, well below MESSAGE_BYTES_MAX."""
LINK_QUEUE_BYTES_MAX = 8 * 1024 * 1024
"""Unsent bytes per link; a peer that reads slower is disconnected and resynchronises later."""
UNAUTHENTICATED_LINKS_MAX = 64
"""Connections that have not finished TLS + hello; above it the oldest is closed."""
UNAUTHENTICATED_PER_HOST_MAX = 16
"""Of one source address; above it the new connection is closed at once."""
ACCEPT_BURST = 50
ACCEPTS_PER_S = 50
"""Accept token bucket; above it new connections wait in the kernel's backlog."""
HANDSHAKE_TIMEOUT_S = 8.0
"""From accept to hello; a slow-loris is closed after it."""
CONNECT_TIMEOUT_S = 4.0
CONN_LIMIT_DEFAULT = 200
PEERS_MAX = 4096
"""Known origins; records of further peers are refused and reported."""

# --- targets ---
TARGETS_MAX = 1024
RETRY_FIRST_S = 0.5
RETRY_FACTOR = 1.5
RETRY_CAP_S = 8.0
RETRY_REFUSED_CAP_S = 60.0
"""After a refusal (other cluster, password, removed) there is no hurry."""
RETRY_JITTER = 0.25
RESOLVED_ADDRESSES_MAX = 64

# --- heartbeats and gossip ---
HEARTBEAT_BUSY_S = 1.0
HEARTBEAT_IDLE_S = 5.0
HEARTBEAT_MISSES = 3
SILENCE_MAX_S = 10.0
LAZY_DIGEST_DELAY_S = 0.15
"""A change is announced on non-tree links after this pause; whoever still lacks it pulls (Plumtree's IHAVE)."""
DIGEST_BUCKETS = 64
RECORD_BYTES_MAX = 2048
RECORDS_RESERVED = 256
"""Sequence numbers of own records that one row on disk allows for."""
RECORDS_PER_ORIGIN_MAX = 16_384
RECORDS_BYTES_MAX = 256 * 1024 * 1024
"""Of all others' records together, with what holding each takes: 600 records of each of 1000 peers. Records beyond it
are refused and reported. The two bounds before it alone would let one peer, or anybody where there is no password, make
us hold 140 GB in the name of origins that do not exist."""
RECORD_HELD_BYTES = 280
"""What one record takes beside its body: objects, and their places in dictionaries."""
RECORD_ABSENT_EXPIRY_S = 24 * 3600.0
RECORD_AGE_MAX_S = 1 << 32
"""How long an origin can have been absent, as others say: 136 years. A receiver adds to it, and the sum must still be
an integer of msgpack."""
ROUTE_HOPS_MAX = 16
INCARNATION_MAX = 1 << 62
"""A thousand million starts. Nothing is believed beyond it, neither of us nor of anybody else."""

# --- ring and IPAM ---
SEGMENTS_MAX = 65_536
STAMP_VERSION_MAX = 1 << 48
"""Of a stamp taken from others: a change a microsecond for nine years. Ours are one above, and must fit in 64 bits."""
SUBNET_ADDRESSES_MIN = 4
GRANT_ADDRESSES_MIN = 4
FREED_QUIET_S = 5.0
"""A freed address rests this long before it is handed out again, unless nothing else is left."""
DEAD_KEEP_S = 30.0
"""A dead container may restart and finds its address again."""
SPACE_RETRY_S = 1.0
PENDING_REQUESTS_MAX = 1024
"""Waiting allocations and claims; a further one fails with `busy`."""
IDENT_BYTES_MAX = 128
ADDRESSES_PER_IDENT_MAX = 256

# --- election ---
ELECTION_GRACE_S = 2.0
"""After a quorum answered, wait this long for the rest of N, then decide among those heard from."""
ELECTION_RETRY_S = 1.0
TARGET_SETTLE_S = 1.0
"""Our count of targets is not announced before each was tried once, or this much time passed (self-detection)."""
LOCK_GRACE_S = 5.0
"""With ``lock=``: how long the first one waits for the electors that its targets promise before it names those within
reach. Uniqueness does not depend on it, only who gets an initial share."""
LOCK_RETRY_FIRST_S = 1.0
LOCK_RETRY_FACTOR = 2.0
LOCK_RETRY_CAP_S = 15.0
"""A lock that does not answer is asked again after pauses from the first to the last."""
LOCK_RECORD_BYTES_MAX = 64 * 1024
"""256 electors take 18 kB; more is not a cluster record."""
LOCK_URL_CHARACTERS_MAX = 1024
BALLOT_ROUND_MAX = 1 << 32
"""Of a ballot taken from others; ours are one above, and must fit in 64 bits."""
ELECTORS_MAX = 256
VOTERS_MAX = 7
VOTERS_MIN = 3
"""Voters that are gone are not dropped below this without an operator."""
VOTERS_CHECK_S = 2.0
"""The first reachable voter looks this often whether voters should be added or replaced."""
GROW_AFTER_S = 5.0
"""Peers that may vote are added when the same ones were there for this long."""
VOTER_ABSENT_S = 600.0
"""A voter that a quorum has not seen for this long is replaced."""

# --- planes ---
PROBE_BUSY_S = 0.5
PROBE_QUIET_S = 5.0
PROBE_IDLE_MIN_S = 60.0
PROBE_IDLE_MAX_S = 120.0
PROBE_MISSES = 3
PROBE_RETURN_S = 5.0
"""A broken path that containers would use is probed at least this often, so that a better plane is not missed."""
PROBE_DAMPING_S = 60.0
"""A path that broke within this time before has to answer twice as often in a row as the last time to count again."""
PROBE_PROOFS_MAX = 16
HOPS_AT_ONCE_PEERS = 64
HOPS_INTERVAL_S = 0.5
"""Beyond so many peers next hops are computed no more often: 1000 peers with 20 links each take some 20 ms."""
TRUSTED_SUBNETS_MAX = 32
"""Published by each peer, in one record of at most 2 kB."""
SLEEVE_PROOF_S = 2.0
"""Sleeve counts as not working when nothing was answered this long after the worker was told of a peer."""
TRAFFIC_BUSY_S = 10.0
TRAFFIC_IDLE_S = 60.0
HANDOVER_RETRY_S = 2.0
MTU_DEFAULT = 1376
MTU_MIN = 576
MTU_MAX = 65_535
ENDPOINT_ADDRESSES_MAX = 256

# --- names ---
DNS_DOMAIN_DEFAULT = "weave.local."
DNS_DOMAIN_CHARACTERS_MAX = 198
"""Leaves room for names in it; 200 octets on the wire."""
DNS_TTL_DEFAULT_S = 1
DNS_TTL_MAX_S = 86_400
"""A day: an address that is gone would be believed in for that long."""
NAME_CHARACTERS_MAX = 253
"""Without the trailing dot (RFC 1035, section 2.3.4: 255 octets on the wire)."""
NAME_LABEL_CHARACTERS_MAX = 63
"""RFC 1035, section 2.3.4."""
NAME_ADDRESSES_MAX = 1024
"""Addresses answered for one name; of more, the lowest count. As AAAA they still fit into one message over TCP."""
NAME_ENTRIES_MAX = 8192
"""Entries that one peer publishes; those beyond are not, and the log says so. Half of RECORDS_PER_ORIGIN_MAX."""
NAME_ABSENCE_S = 2.0
"""Names of a host that cannot be reached are answered for this long: a daemon that is started anew is back within a
second, and its containers were never gone."""
HOSTS_FILE_BYTES_MAX = 1024 * 1024
"""Of a container's /etc/hosts that we are asked to rewrite; a larger one is refused."""
NAME_REGISTRATIONS_MAX = 8192
"""Names registered at one peer, by attach and by hand; a further one is refused."""

# --- mesh ---
TARGET_TEXT_MAX = 261
"""Characters of ``host:port``: 253 of a DNS name, brackets, port; a longer target is refused."""
RERESOLVE_S = 30.0
"""A target that is connected, or is ourselves, is resolved again this often: its name may have moved or grown."""
REDIAL_JITTER_S = 0.5
"""A lost link is dialled again at once, spread over this long so that a crowd does not arrive together."""
LINK_LIVED_S = 5.0
"""An established link that lasted this long resets its target's backoff; a shorter one counts as a failure."""
HEARTBEAT_BUSY_LINKS = 32
"""With at most this many links all of them beat every HEARTBEAT_BUSY_S; with more only those that carry something."""
EAGER_LINKS_MIN = 2
"""A duplicate push prunes its link only while more than this many links are eager: two keep gossip going at full
speed when one of them dies, and leave the copies received per change near two."""
EAGER_LINKS_START = 4
"""A new link starts lazy when this many are eager already; with all of them eager a hundred peers that start together
would send every change over every link."""
PUSH_PAUSE_PER_PEER_S = 0.001
PUSH_PAUSE_MAX_S = 0.5
"""After a push of records the next one waits this long, times the peers that are known: a change by itself leaves at
once, but of a thousand peers that start together each would else send an event per record and link."""
OWN_PAUSE_PUSHES = 4
"""Own records that may wait for company leave every so many pauses at most."""
REPAIR_QUIET_PUSHES, REPAIR_WAIT_PUSHES = OWN_PAUSE_PUSHES + 1, 16
"""A difference in records is repaired when nothing was news for so many pauses since it showed, in which whoever made
it has pushed it; or after so many of them."""
NEIGHBOUR_WAIT_S = 0.03
"""A new link is told to others after this pause, together with those that come up meanwhile."""
REPAIR_INTERVAL_S = 0.5
"""A difference seen in a digest starts at most one repair per link in this time."""
PULL_PENDING_S = 1.0
"""Records of an origin that were pulled over one link are not pulled over another for this long."""
REPAIR_BURST_BYTES = 1024 * 1024
"""Sent in answer to one pull; the next digest asks for the rest. Keeps far below LINK_QUEUE_BYTES_MAX."""
DELETION_STEPS_MAX = 256
"""Deletions remembered per origin; whoever is further behind gets the list of what still lives instead."""
DISCOVERY_INTERVAL_S = 0.3
"""Candidates for discovery are looked for at most this often."""
DISCOVERY_SHARE = 0.9
"""Discovery fills the connection limit only up to this share; the rest is left for targets and callers."""
DISCOVERY_ADDRESSES_MAX = 3
"""Addresses tried per discovered peer."""
FAILURES_KEPT = 64
"""Hosts whose failed inbound connections are shown; the oldest is forgotten."""
FAILURE_KEPT_S = 300.0

# --- decrees and removals ---
DECREE_PATIENCE_S = 3.0
"""A ballot that a quorum did not answer in this time is given up for a higher one."""
SEEN_VALID_S = 5.0
"""Answers to "do you see X?" are evidence for this long; a decree that took longer asks again."""
SEEN_RETRY_S = 0.5
LEASE_TTL_MIN_S = 60
"""Of ``--ephemeral``: shorter than that, a slow network looks like death."""
LEASE_TTL_MAX_S = 30 * 86_400
LEASE_SHARE = 0.8
"""Of its TTL after which an ephemeral peer without a quorum stops; the rest is for clocks that run apart."""
RENEW_SHARE = 0.1
"""Of its TTL between two renewals."""
LAPSE_CHECK_S = 1.0
LAPSED_PER_QUERY_MAX = 256
"""Peers given up in one decree; the others follow in the next."""
ATTEST_KEPT_S = 30.0
"""A durable "I do not see X" is dropped when X is back and nobody has asked for this long."""
COLLECT_RETRY_S = 0.5
"""Peers that an heir waits for are asked again this often."""
HOLD_RETRY_S = 1.0
CONFIRM_PATIENCE_S = 10.0
"""A data path whose peer has not confirmed a removal for this long is closed, when a new path waits for it."""
NAMES_KEPT = 1024
"""Names of peers that left, or that nobody remembers, beyond which they are forgotten, all at once."""
REMOVALS_MAX = 256
"""Proposals of removal at one peer; a further one fails as busy."""

# --- leaving ---
CUSTODIANS_MAX = 8
CUSTODIANS_MIN = 2
"""What a leaver knew survives the death of one of them; fewer only where fewer peers are known."""
CUSTODY_ROWS_MAX = 256
"""Departed peers handed on from one custodian to the next, latest first, in one message. Others learnt of the
older ones long ago."""
DEPARTED_MAX = 8192
"""Departed peers remembered; beyond it the oldest of those that nothing hangs on is forgotten."""
HEIRS_MAX = 3
"""A leaver divides its space among at most so many: each has to be heard from before it may go."""
LEAVE_RETRY_S = 0.5
LEAVE_ANSWER_VALID_S = 3.0
"""An answer "I stay" counts this long: six questions may be lost."""
LEFT_PRESUMED_S = 10.0
"""A leaver that all custodians know everything of, and that is unreachable this long, has left."""
LEFT_FLUSH_S = 0.3
"""Between the last words of a leaver and its end: they are on their way by then."""
VACATE_RETRY_S = 5.0
SLEEVE_UNIT_BYTES = 60_000
"""TCP units of containers whose frames leave encrypted only: 45 segments of the usual MTU, which fill one send of
sleeve, sealed together or each by itself. A unit of the kernel's 64 kB takes two."""
