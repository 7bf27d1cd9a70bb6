"""Run the one suite on each of Scrapy's three runtimes: `python -m tests [pytest options]`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from typing import NamedTuple

from .scale import VARIABLE

# pytest-twisted installs the reactor; blocked (its plugin is called `twisted`), there is none.
RUNTIMES = {
    "asyncio": ("the asyncio reactor", ["--reactor=asyncio"]),
    "twisted": ("Twisted's default reactor", ["--reactor=default"]),
    "none": ("no reactor", ["-p", "no:twisted"]),
}
ONCE = "not crawl and not no_runtime"
"""What is left for the second runtime and the third."""
QUICK = "not crawl"

NO_TESTS_COLLECTED = 5  # pytest's exit code

# `-I` keeps the working directory off the path: what is tested is what is installed.
PYTHON = [sys.executable, "-I", "-m"]


class Run(NamedTuple):
    """One run of the suite: where, how it ended, and how long it took."""

    runtime: str
    exit_code: int
    seconds: float
    may_be_empty: bool

    @property
    def result(self) -> str:
        if self.exit_code == NO_TESTS_COLLECTED:
            return "no tests"
        return "failed" if self.exit_code else "passed"

    @property
    def failed(self) -> bool:
        return self.exit_code != 0 and not (self.result == "no tests" and self.may_be_empty)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return our own options, and those that are pytest's."""
    parser = argparse.ArgumentParser(
        prog="python -m tests",
        description="Run the suite on each of Scrapy's runtimes. All other options go to pytest.",
        allow_abbrev=False,
    )
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument(
        "--quick", action="store_true", help="one runtime, and no whole crawls: one minute"
    )
    extent.add_argument(
        "--full",
        action="store_true",
        help="kill, replay and store all that there is, and not a part of it: it takes long",
    )
    parser.add_argument(
        "--runtime",
        action="append",
        choices=RUNTIMES,
        help="run on this runtime (repeatable; all three by default)",
    )
    parser.add_argument(
        "-n",
        dest="workers",
        default=str(usable_cores() + 1),
        help="tests at a time (by default one more than there are cores: some wait); 0 to debug",
    )
    parser.add_argument("-m", dest="markers", default="", help="as pytest's own")
    parser.add_argument(
        "--cov",
        action="store_true",
        help="measure coverage in the first run, with no reactor: it takes twice the time there",
    )
    return parser.parse_known_args(argv)


def run_suite(
    runtime: str, pytest_options: list[str], *, markers: str, cov: bool, first: bool
) -> Run:
    """Run pytest on one runtime; what no runtime matters to runs the first time only."""
    description, options = RUNTIMES[runtime]
    wanted = [markers] if first else [markers, ONCE]
    expression = " and ".join(f"({each})" for each in wanted if each)
    print(f"\n##### {runtime}: {description}\n", flush=True)
    pytest = [*PYTHON, *(["coverage", "run", "-p", "-m"] if cov else []), "pytest"]
    started = time.monotonic()
    extent = os.environ.get(VARIABLE) or ("" if first else "quick")
    ended = subprocess.run(
        [*pytest, *options, "-m", expression, *pytest_options],
        env={**os.environ, VARIABLE: extent},
        check=False,
    )
    return Run(runtime, ended.returncode, time.monotonic() - started, may_be_empty=not first)


def report_coverage() -> int:
    """Combine what the processes measured; return nonzero when it is too little."""
    print("\n##### coverage\n", flush=True)
    subprocess.run([*PYTHON, "coverage", "combine", "--quiet"], check=True)
    return subprocess.run([*PYTHON, "coverage", "report"], check=False).returncode


def main(argv: list[str]) -> int:
    """Run the suite on each runtime in turn, and return 0 if it passed on all."""
    arguments, pytest_options = parse_arguments(argv)
    # Where coverage is measured, pytest-twisted's greenlets would make it dearer still.
    known = reversed(RUNTIMES) if arguments.cov else RUNTIMES
    runtimes = list(dict.fromkeys(arguments.runtime or known))
    markers = arguments.markers
    if arguments.cov and runtimes[0] != "none":
        sys.exit("--cov: coverage is measured without a reactor; give no --runtime but none")
    if arguments.quick:
        os.environ[VARIABLE] = "quick"
        runtimes = runtimes[:1]
        markers = f"({markers}) and {QUICK}" if markers else QUICK
    elif arguments.full:
        os.environ[VARIABLE] = "full"
        print("All of it: much longer than the 5 minutes of a run without --full.")
    elif not argv:
        print("The suite on three runtimes: about 5 minutes on two cores (--quick: one minute).")
    if arguments.cov:
        subprocess.run([*PYTHON, "coverage", "erase"], check=True)
    runs = [
        run_suite(
            runtime,
            ["-n", "0" if "--pdb" in pytest_options else arguments.workers, *pytest_options],
            markers=markers,
            cov=arguments.cov and runtime == runtimes[0],
            first=runtime == runtimes[0],
        )
        for runtime in runtimes
    ]
    enough = report_coverage() == 0 if arguments.cov else True
    print("\n##### results\n")
    for run in runs:
        print(
            f"{run.runtime:<10}{run.result:<10}{run.seconds:>7.1f} s   {RUNTIMES[run.runtime][0]}"
        )
    if not enough:
        print("coverage  failed")
    return int(any(run.failed for run in runs) or not enough)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
