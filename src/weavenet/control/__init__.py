"""The daemon's control API: one unix socket for root, one read-only TCP port, and the reports people read.

``service.py`` says what a daemon must offer; ``handlers.py`` maps requests to it and knows nothing of sockets;
``server.py`` moves bytes and knows nothing of verbs; ``status.py`` and ``report.py`` are pure functions of a
``NodeReport``.
"""
