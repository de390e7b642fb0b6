"""The command ``weave``: one small module per noun, loaded only when its verb is used.

Talks to the daemon over its control socket and never imports it. ``quick.py`` answers ``weave status`` before anything
heavy is imported; ``main.py`` has the table of verbs. Results go to stdout, everything else to stderr.
"""
