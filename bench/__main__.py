"""The command line of ``bench/run``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Protocol

from bench import document
from bench.gate import Gate, adopt_orphans
from bench.options import Options
from bench.table import Result

BENCHES = ("fastdp", "planes", "start", "status", "memory", "allocations", "restart", "imports", "dns", "names", "ring")


class Bench(Protocol):
    def measure(self, options: Options, gate: Gate) -> Result: ...


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/run", description="Measures Weave on this machine; see bench/run itself."
    )
    parser.add_argument("names", nargs="*", metavar="bench", help=f"of: {', '.join(BENCHES)}; default: all")
    parser.add_argument("--write", action="store_true", help="update the section of docs/benchmarks.md")
    parser.add_argument("--quick", action="store_true", help="few repetitions, to see that it works")
    parser.add_argument("--repeat", type=int, default=0, metavar="N", help="so many repetitions instead of the usual")
    parser.add_argument("--no-gate", action="store_true", help="do not repeat what other processes disturbed")
    for what in ("rows", "columns"):
        text = f"only {what} of planes that begin so, while working on it; separated by commas"
        parser.add_argument(f"--{what}", default="", metavar="NAME,…", help=text)
    parser.add_argument("--list", action="store_true", help="say what there is")
    parsed = parser.parse_args(arguments)
    unknown = [name for name in parsed.names if name not in BENCHES]
    if unknown:
        parser.error(f"expected one of {', '.join(BENCHES)}; found: {', '.join(unknown)}")
    if parsed.quick and parsed.write:
        parser.error("--quick figures are not worth writing down")
    if parsed.repeat < 0:
        parser.error(f"expected --repeat of at least 1; found: {parsed.repeat}")
    if (parsed.rows or parsed.columns) and (parsed.write or parsed.names != ["planes"]):
        parser.error("--rows and --columns are for planes alone, and without --write")
    return parsed


def main(arguments: list[str]) -> int:
    parsed = parse(arguments)
    names = parsed.names or list(BENCHES)
    if parsed.list:
        for name in BENCHES:
            module = importlib.import_module(f"bench.{name}")
            print(f"{name:12} {(module.__doc__ or '').partition(chr(10))[0]}")
        return 0
    if os.geteuid() != 0:
        print("bench: needs root, for network namespaces; next: sudo bench/run", file=sys.stderr)
        return 1
    rows, columns = (tuple(filter(None, text.split(","))) for text in (parsed.rows, parsed.columns))
    options = Options(parsed.quick, parsed.repeat, rows, columns)
    adopt_orphans()
    failed = 0
    for name in names:
        bench: Bench = importlib.import_module(f"bench.{name}")
        try:
            result = bench.measure(options, Gate(attempts_max=1 if parsed.no_gate else 6))
            text = document.section(f"bench/run {name}", result)
            print(f"{name}: {text}")
            if parsed.write:
                document.write(name, text)
        except Exception as problem:  # the other benches still have something to say
            print(f"bench: {name}: {type(problem).__name__}: {problem}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
