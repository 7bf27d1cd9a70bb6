"""A process of its own that holds a journal, or writes into it until it is killed.

``python journal_process.py hold|write PATH`` says on its standard output what it does.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path

from scrapy_deferkit._runtime import to_awaitable
from scrapy_deferkit.journal import Journal, JournalError


def say(*words: str) -> None:
    print(*words, flush=True)


async def write(journal: Journal, number: int) -> None:
    for turn in itertools.count():
        item_id, begun = journal.begin("pipelines", f'{{"writer": {number}, "turn": {turn}}}', "T")
        await to_awaitable(begun)
        say("begun", item_id)
        if turn % 3:
            say("ending", item_id)
            journal.end(item_id)


async def main(task: str, path: Path) -> None:
    def fail(error: JournalError) -> None:
        raise error

    journal = Journal(path, fail)
    try:
        await to_awaitable(journal.open())
    except JournalError as error:
        say(type(error).__name__, str(error))
        return
    say("open")
    if task == "hold":
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    else:
        await asyncio.gather(*(write(journal, number) for number in range(5)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
