"""Measure us and the peer in turn, and compare the ratio with its target.

``python benchmarks/run.py`` is the full form; ``--short`` is for CI, and lets a ratio be half of
its target.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pyperf
from comparisons import COMPARISONS, Comparison, Measurement
from scrapy.utils.defer import deferred_from_coro
from scrapy.utils.reactor import install_reactor

SIDES = ("deferkit", "peer")


class Form(NamedTuple):
    """How much is measured, and how near a ratio has to come to its target."""

    processes: int
    rounds: int
    crawls: int  # rounds of what is a whole crawl
    share_of_crawl: float  # of its pages or items
    seconds: float  # that one measurement takes, at least
    share_of_target: float


FULL = Form(processes=3, rounds=12, crawls=4, share_of_crawl=1.0, seconds=0.05, share_of_target=1.0)
SHORT = Form(
    processes=1, rounds=5, crawls=1, share_of_crawl=0.25, seconds=0.02, share_of_target=0.5
)


async def calibrate(measure: Measurement, seconds: float) -> tuple[int, float]:
    """Give a number of loops that takes *seconds* or more, and what one of them took."""
    loops = 1
    while (took := await measure(loops)) < seconds:
        loops = max(loops * 2, int(loops * seconds / max(took, 1e-9)))
    return loops, took / loops


async def measure_in_turn(compared: Comparison, form: Form) -> list[pyperf.Benchmark]:
    """Measure both sides, round by round, each as often the first of the two as the other."""
    measures = dict(zip(SIDES, await compared.make(), strict=True))
    if compared.loops is None:
        rounds = form.rounds
        calibrated = {side: await calibrate(measures[side], form.seconds) for side in SIDES}
    else:
        rounds = form.crawls
        loops = int(compared.loops * form.share_of_crawl)
        calibrated = {side: (loops, await measures[side](loops) / loops) for side in SIDES}
    values: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(rounds):
        for side in SIDES if number % 2 else reversed(SIDES):
            loops, _ = calibrated[side]
            values[side].append(await measures[side](loops) / loops)
    return [
        pyperf.Benchmark(
            [
                pyperf.Run(
                    values[side],
                    warmups=[calibrated[side]],
                    metadata={"name": f"{compared.name} {side}", "loops": calibrated[side][0]},
                )
            ]
        )
        for side in SIDES
    ]


def work(form: Form, chosen: list[Comparison]) -> None:
    """Be one process: measure all on Scrapy's default reactor, and write pyperf's JSON."""
    install_reactor("twisted.internet.asyncioreactor.AsyncioSelectorReactor")
    from twisted.internet import task

    async def measure_all() -> None:
        measured = [await measure_in_turn(compared, form) for compared in chosen]
        suite = pyperf.BenchmarkSuite([side for sides in measured for side in sides])
        suite.dump(sys.stdout)

    task.react(lambda _: deferred_from_coro(measure_all()))


def gather(form: Form, arguments: list[str]) -> pyperf.BenchmarkSuite:
    """Run the processes one after the other, and put together what they measured."""
    gathered: pyperf.BenchmarkSuite | None = None
    for number in range(form.processes):
        print(f"process {number + 1} of {form.processes}", file=sys.stderr)
        ended = subprocess.run(
            [sys.executable, __file__, "--worker", *arguments],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        suite = pyperf.BenchmarkSuite.loads(ended.stdout)
        if gathered is None:
            gathered = suite
        else:
            for benchmark in suite:
                gathered.get_benchmark(benchmark.get_name()).add_runs(benchmark)
    assert gathered is not None
    return gathered


def show(suite: pyperf.BenchmarkSuite, chosen: list[Comparison], form: Form) -> bool:
    """Print the table; tell whether each ratio is near enough to its target."""
    is_enough = True
    head = f"{'ours | peer':<86}{'ours':>17}{'peer':>17}{'ratio':>8}{'target':>8}"
    print(f"\n{head}\n{'-' * len(head)}")
    for compared in chosen:
        ours, peer = (suite.get_benchmark(f"{compared.name} {side}") for side in SIDES)
        # Each round has its own ratio: what slows a machine down slows both sides of it.
        ratio = statistics.median(
            theirs / own for own, theirs in zip(ours.get_values(), peer.get_values(), strict=True)
        )
        is_near = ratio >= compared.target * form.share_of_target
        is_enough = is_enough and is_near
        times = "".join(f"{in_microseconds(side):>17}" for side in (ours, peer))
        print(
            f"{compared.what:<86}{times}{ratio:>8.2f}{compared.target:>8.2f}"
            f"{'' if is_near else '  TOO SLOW'}"
        )
    share = "" if form.share_of_target == 1 else f"; {form.share_of_target:.0%} of it is enough"
    print(f"\nMedians in µs ± median absolute deviation; the target is the least ratio{share}.")
    return is_enough


def in_microseconds(benchmark: pyperf.Benchmark) -> str:
    return f"{benchmark.median() * 1e6:.2f} ± {benchmark.median_abs_dev() * 1e6:.2f}"


def main(argv: list[str]) -> int:
    """Measure, print, and return 0 if nothing is too slow."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--short", action="store_true", help="measure less; half of a target do")
    parser.add_argument("--only", default="", metavar="NAME", help="those with this in their name")
    parser.add_argument("--output", type=Path, metavar="FILE", help="keep the values, for pyperf")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    form = SHORT if options.short else FULL
    chosen = [compared for compared in COMPARISONS if options.only in compared.name]
    if not chosen:
        parser.error(f"--only {options.only}: the names are {[each.name for each in COMPARISONS]}")
    if options.worker:
        work(form, chosen)
        return 0
    forwarded = [*(["--short"] if options.short else []), "--only", options.only]
    suite = gather(form, forwarded)
    if options.output:
        suite.dump(str(options.output), replace=True)
    return 0 if show(suite, chosen, form) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
