"""Run the one suite on each of Scrapy's three runtimes: `python -m tests [pytest options]`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from typing import NamedTuple

# pytest-twisted installs the reactor; blocked (its plugin is called `twisted`), there is none.
RUNTIMES = {
    "asyncio": ("the asyncio reactor", ["--reactor=asyncio"]),
    "twisted": ("Twisted's default reactor", ["--reactor=default"]),
    "none": ("no reactor", ["-p", "no:twisted"]),
}
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


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return our own options, and those that are pytest's."""
    parser = argparse.ArgumentParser(
        prog="python -m tests",
        description="Run the suite on each of Scrapy's runtimes. All other options go to pytest.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--runtime",
        action="append",
        choices=RUNTIMES,
        help="run on this runtime (repeatable; all three by default)",
    )
    parser.add_argument("-m", dest="markers", default="", help="as pytest's own")
    parser.add_argument("--cov", action="store_true", help="measure coverage over all runs")
    return parser.parse_known_args(argv)


def run_suite(
    runtime: str, pytest_options: list[str], *, markers: str, cov: bool, first: bool
) -> Run:
    """Run pytest on one runtime; the crawls that no runtime matters to run the first time only."""
    description, options = RUNTIMES[runtime]
    wanted = [markers] if first else [markers, "not crawl"]
    expression = " and ".join(f"({each})" for each in wanted if each)
    print(f"\n##### {runtime}: {description}\n", flush=True)
    pytest = [*PYTHON, *(["coverage", "run", "-p", "-m"] if cov else []), "pytest"]
    started = time.monotonic()
    ended = subprocess.run([*pytest, *options, "-m", expression, *pytest_options], check=False)
    return Run(runtime, ended.returncode, time.monotonic() - started, may_be_empty=not first)


def report_coverage() -> int:
    """Combine what the runs measured; return nonzero when it is too little."""
    print("\n##### coverage of all runs\n", flush=True)
    subprocess.run([*PYTHON, "coverage", "combine", "--quiet"], check=True)
    return subprocess.run([*PYTHON, "coverage", "report"], check=False).returncode


def main(argv: list[str]) -> int:
    """Run the suite on each runtime in turn, and return 0 if it passed on all."""
    arguments, pytest_options = parse_arguments(argv)
    runtimes = list(dict.fromkeys(arguments.runtime or RUNTIMES))
    if arguments.cov:
        subprocess.run([*PYTHON, "coverage", "erase"], check=True)
    runs = [
        run_suite(
            runtime,
            pytest_options,
            markers=arguments.markers,
            cov=arguments.cov,
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
