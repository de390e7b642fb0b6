"""Deciding the cluster record: single-decree Paxos among electors that find each other."""

from weavenet.core.election.acceptor import Acceptor
from weavenet.core.election.electorate import Electorate
from weavenet.core.election.proposer import GenesisElection

__all__ = ["Acceptor", "Electorate", "GenesisElection"]
