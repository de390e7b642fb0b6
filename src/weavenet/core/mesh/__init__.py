"""The mesh: links to other peers, what is replicated over them, and the ways to those without a link.

Imports nothing, so that the command line can check a target without loading all of it.
"""
