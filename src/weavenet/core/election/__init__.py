"""Deciding: the cluster record by single-decree Paxos among electors that find each other, or by a lock that all can
reach; then one decree after the other among the voters that the log names."""

from weavenet.core.election.acceptor import Acceptor
from weavenet.core.election.decrees import DecreeAcceptor, DecreeElection, DecreeMessage
from weavenet.core.election.electorate import Electorate, Turnout, quorum, turnout
from weavenet.core.election.locking import LockedGenesis
from weavenet.core.election.proposer import GenesisElection
from weavenet.core.election.reconfiguration import Reconfiguration

__all__ = [
    "Acceptor",
    "DecreeAcceptor",
    "DecreeElection",
    "DecreeMessage",
    "Electorate",
    "GenesisElection",
    "LockedGenesis",
    "Reconfiguration",
    "Turnout",
    "quorum",
    "turnout",
]
