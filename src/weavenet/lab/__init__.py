"""Many hosts on one machine, with the real kernel: what ``weave lab`` and the tests of the running system use.

A host is a set of namespaces (network, mount, UTS, IPC, PID) with its own disk; a small reaper is its PID 1. The
underlay between hosts is a bridge in a namespace of its own. All traffic stays inside namespaces the lab made.

A lab makes no mount, no device and no named namespace outside its own namespaces, and every process of a lab carries
the lab's name in its environment. So ending those processes ends everything, also after a crash.
"""
