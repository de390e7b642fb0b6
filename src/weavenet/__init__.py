"""Weave: one network for containers on many hosts."""

__version__ = "0.1.0"
