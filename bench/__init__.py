"""Figures of Weave on one machine: one module per bench, each prints one table; ``bench/run`` starts them.

Method, the same for all: what is compared is measured in pairs, back to back in one run, in alternating order; ratios
are taken per pair and the median of the ratios counts. Each measurement is repeated while other processes of the
machine disturbed it (``gate.py``). A bench reports figures beside their bars and never fails because of them.
"""
