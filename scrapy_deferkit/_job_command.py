"""``scrapy deferkit job``: what the file of a job holds, and what was set aside put back."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from ._jobfile import look, retry
from ._outline import Outline
from .report import printable, table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable
    from pathlib import Path

    from ._jobfile import Aside, Look


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand."""
    parser.add_argument("--json", action="store_true", help="JSON, for programs")
    parser.add_argument(
        "--retry", action="store_true", help="let what is set aside wait again, with no deaths"
    )
    parser.add_argument(
        "--finished",
        action="store_true",
        help="only tell whether it has been crawled to its end: exit code 0, else 1",
    )


def run_job_command(
    folder: Path, *, as_json: bool, retries: bool, asks_whether_finished: bool
) -> int:
    """Show the job in *folder*, or put back what is set aside; return the exit code.

    Raises :exc:`~scrapy_deferkit.exceptions.JobError` if that cannot be done.
    """
    if asks_whether_finished:
        return 0 if look(folder).has_finished else 1
    if retries:
        number = retry(folder)
        put_back = json.dumps({"put_back": number}) if as_json else _put_back(number)
        sys.stdout.write(f"{put_back}\n")
    elif as_json:
        sys.stdout.write(f"{json.dumps(_described(look(folder)))}\n")
    else:
        _show(look(folder), folder)
    return 0


def _put_back(number: int) -> str:
    return f"{number} request{' waits' if number == 1 else 's wait'} again."


def _described(job: Look) -> dict[str, Any]:
    return {**vars(job), "aside": [_described_aside(request) for request in job.aside]}


def _described_aside(request: Aside) -> dict[str, Any]:
    outline = Outline.of(request.data)._asdict()
    return {"id": request.id, **outline, "deaths": request.deaths, "reason": request.reason}


def _show(job: Look, folder: Path) -> None:
    in_work = "in work" if job.last_run == "running" else "in work when it ended"
    figures = {
        f"run {job.runs}": _ended(job),
        "waiting": job.waiting,
        in_work: job.in_work,
        "seen": job.seen,
        "set aside": len(job.aside),
    }
    _put(("job", str(folder)), figures.items())
    if job.waiting_by_domain:
        _put(("domain", "waiting"), job.waiting_by_domain.items())
    if job.aside:
        rows = (tuple(_described_aside(request).values()) for request in job.aside)
        _put(("id", "method", "URL", "deaths", "reason"), rows)
        sys.stdout.write(f"To crawl what is set aside: scrapy deferkit job {folder} --retry\n")


def _ended(job: Look) -> str:
    if job.last_run != "closed":
        return job.last_run
    return "cut off while it closed" if job.reason is None else f"closed, {job.reason}"


def _put(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    """Put out a table on a terminal, else lines with tabs between the cells and an empty one."""
    cells = [["?" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        sys.stdout.writelines("\t".join(row) + "\n" for row in [head, *cells, ()])
        return
    from rich import box
    from rich.console import Console

    numbers = {"waiting", "deaths", "id"}
    columns = {name: {"justify": "right"} if name in numbers else {} for name in head}
    Console().print(table(box.SIMPLE_HEAD, columns, cells))
