"""How every process of ours begins: ``python -I -S program.py MODULE [ARGUMENT…]`` runs ``main`` of that module, or of
its ``__main__`` if it is a package, and ends with the status that it returns.

``-I``: nothing of the caller's folder, environment or home is imported by a program that runs as root. ``-S``: no
``site``, which takes as long as the rest of an interpreter's start; this adds the two folders that are needed. A
process that has ``site`` itself, since an installed package may need it to find its libraries, gives it on.

As a module it gives the command line (:func:`command`). Kept tiny, since a script is compiled at every start while
modules are not.
"""

import sys

source = __file__.rpartition("/weavenet/")[0]
environment = sys.executable.rpartition("/bin/")[0]


def command(module: str, *arguments: str) -> list[str]:
    """What to execute for ``module``."""
    flags = ["-I", "-S"] if sys.flags.no_site else ["-I"]
    return [sys.executable, *flags, f"{source}/weavenet/program.py", module, *arguments]


def run(name: str, arguments: list[str]) -> int:
    """The exit status of ``module``."""
    from importlib import import_module

    try:
        module = import_module(name)
        if hasattr(module, "__path__"):
            module = import_module(f"{name}.__main__")
        status: int = module.main(arguments)
    except KeyboardInterrupt:  # while what was asked for was still being loaded
        status = 130
    return status


if __name__ != "weavenet.program":  # the script, or the processes that `weave sim --jobs` spawns, for its path alone
    sys.path[:0] = [source, f"{environment}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"]
if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
