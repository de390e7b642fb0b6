"""Sleeve: the encrypted data path in userspace, a worker process of its own.

Frames come from a TAP device that is an isolated port of the bridge, whole TCP units of up to 60 kB at a time; they
leave as sealed UDP datagrams, a batch per system call. ``wire`` specifies what is on the network and argues why no
nonce repeats; ``weavenet.core.overlay.sleeve`` what the daemon wants and what the worker reports. The worker keeps
forwarding while there is no daemon.
"""
