"""``python -m tests.bench``: measure what things cost; a table, and ``var/bench.json``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.bench.benchmarks import BENCHMARKS
from tests.bench.figure import Benchmark, Figure, Figures

RESULT = Path("var/bench.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run benchmarks; return 0 whatever they show: a report judges nobody."""
    options = _parse(arguments)
    if options.list:
        for one in BENCHMARKS:
            print(f"{one.name:<18} {one.what}")
        return 0
    if options.markdown:
        print(markdown(msgspec.json.decode(options.output.read_bytes(), type=Figures)))
        return 0
    chosen = [one for one in BENCHMARKS if not options.only or one.name in options.only]
    figures: Figures = {}
    for number, one in enumerate(chosen, 1):
        lacking = lacks(one)
        if lacking:
            _progress(f"{number}/{len(chosen)} {one.name}: skipped, {lacking}")
            continue
        _progress(f"{number}/{len(chosen)} {one.name}: {one.what}")
        began = time.monotonic()
        figures |= one.measure(options.quick)
        _progress(f"{number}/{len(chosen)} {one.name}: took {time.monotonic() - began:.0f} s")
    print(table(figures))
    if options.quick:
        print("These were quick rounds: the values mean nothing, and are not kept.")
        return 0
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")
    print(f"Written to {options.output}.")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=[one.name for one in BENCHMARKS],
        help="run this benchmark and no others; may be given several times",
    )
    parser.add_argument("--list", action="store_true", help="list the benchmarks")
    parser.add_argument(
        "--markdown", action="store_true", help="print the last figures as a table for a page"
    )
    parser.add_argument("--quick", action="store_true", help="go through all with little work")
    parser.add_argument(
        "--output", type=Path, default=RESULT, metavar="FILE", help=f"instead of {RESULT}"
    )
    return parser.parse_args(arguments)


def lacks(benchmark: Benchmark) -> str:
    """Return what the machine lacks for a benchmark, in words; empty when it has all."""
    if benchmark.needs_root and os.geteuid() != 0:
        return "needs root"
    missing = [name for name in benchmark.programs if shutil.which(name) is None]
    missing += [str(path) for path in benchmark.files if not path.exists()]
    return f"this machine lacks {', '.join(missing)}" if missing else ""


def table(figures: Figures) -> str:
    """Return the figures as text, with those that miss their target marked."""
    width = max((len(name) for name in figures), default=0)
    lines = [
        f"{name:<{width}}  {figure.value:>10,.2f} {figure.unit:<5}{_verdict(figure)}".rstrip()
        for name, figure in figures.items()
    ]
    return "\n".join(lines)


def markdown(figures: Figures) -> str:
    """Return the figures as a table for a page."""
    lines = ["| figure | value | unit | at most |", "|---|--:|---|--:|"]
    for name, figure in figures.items():
        target = "" if figure.target is None else f"{figure.target:g}"
        mark = "" if figure.is_met else " (missed)"
        lines.append(f"| {name} | {figure.value:,.2f}{mark} | {figure.unit} | {target} |")
    return "\n".join(lines)


def _verdict(figure: Figure) -> str:
    if figure.target is None:
        return ""
    return f"  at most {figure.target:g}{'' if figure.is_met else '  MISSED'}"


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
