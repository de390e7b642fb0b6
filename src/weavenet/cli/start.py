"""What the launcher runs, without ``site``: puts the two folders that are needed on the path, then starts the CLI.

Not a module to import. Kept tiny, since a script is compiled at every start while modules are not.
"""

import sys

source = __file__.rpartition("/weavenet/")[0]
environment = sys.executable.rpartition("/bin/")[0]
sys.path[:0] = [
    source,
    f"{environment}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages",
]

if __name__ == "__main__":  # processes that `weave sim --jobs` spawns import this file for its path alone
    try:
        from weavenet.cli.quick import start

        status = start(sys.argv[1:])
    except KeyboardInterrupt:  # while what was asked for was still being loaded
        status = 130
    sys.exit(status)
