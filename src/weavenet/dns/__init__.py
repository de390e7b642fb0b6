"""The DNS server that the containers of one host ask: a worker process, fed by the daemon.

``wire`` is the codec, ``zone`` what names stand for, ``local`` the answers we give ourselves, ``forward`` what is asked
of the host's upstreams, ``udp`` and ``tcp`` the sockets, ``feed`` the stream from the daemon. Nothing here decides
which names exist.
"""
