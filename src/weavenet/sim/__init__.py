"""Whole clusters of cores in one process and virtual time: one seed, one history (see ``world``)."""
