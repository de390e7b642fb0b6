"""Which data path leads to which peer: the handover before a path opens, the planes and their heartbeats, the choice
among them, relays, and the desired states of the planes.

Imports nothing here: ``weavenet.core.effects`` and the sleeve worker need ``overlay.sleeve`` alone.
"""
