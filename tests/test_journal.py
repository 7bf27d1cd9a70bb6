"""What is in flight is in the journal, whatever happens to the process or to the disk."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from scrapy_deferkit._runtime import CANCELLED, to_awaitable, turn
from scrapy_deferkit.exceptions import DeferKitError
from scrapy_deferkit.journal import (
    Entry,
    Journal,
    JournalError,
    JournalInUse,
    JournalTooNew,
)

from .scale import third_of

PROCESS = Path(__file__).with_name("journal_process.py")
ITEM = '{"title": "Item"}'
TYPE = "bookshop.items.Book"


class Errors(list[JournalError]):
    """What `on_error` was told."""

    def __call__(self, error: JournalError) -> None:
        self.append(error)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "items.journal"


async def opened(path: Path, on_error: Callable[[JournalError], object] | None = None) -> Journal:
    journal = Journal(path, Errors() if on_error is None else on_error)
    await to_awaitable(journal.open())
    return journal


def begin(journal: Journal, item: str = ITEM, **fields: Any) -> tuple[str, Deferred[None]]:
    return journal.begin("pipelines", item, TYPE, **fields)


async def begun(journal: Journal, item: str = ITEM, **fields: Any) -> str:
    item_id, safe = begin(journal, item, **fields)
    await to_awaitable(safe)
    return item_id


async def settled(deferred: Deferred[None]) -> BaseException | None:
    """Wait for *deferred*; give what it failed with."""
    try:
        await to_awaitable(deferred)
    except Exception as error:
        return error
    return None


async def entries_of(journal: Journal, limit: int = 2) -> list[Entry]:
    """Read every page of what earlier runs have left."""
    entries: list[Entry] = []
    while page := await to_awaitable(
        journal.unfinished(entries[-1].position if entries else 0, limit)
    ):
        assert len(page) <= limit
        entries.extend(page)
    return entries


async def close(journal: Journal) -> None:
    await to_awaitable(journal.close())


def rows(path: Path) -> list[str]:
    """Give the ids in the file of a journal that is closed, or whose process is dead."""
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT run || '-' || position FROM items ORDER BY position")
        return [item_id for (item_id,) in found]


def edit(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


async def in_thread(journal: Journal, use: Callable[[sqlite3.Connection], Any]) -> Any:
    """Use the journal's connection where it may be used."""
    assert journal._thread is not None
    return await to_awaitable(journal._thread.call(lambda: use(journal._file._connection)))


async def statements_of(journal: Journal) -> list[str]:
    """Give a list that fills with the first words of what SQLite executes from now on."""
    statements: list[str] = []
    await in_thread(
        journal, lambda it: it.set_trace_callback(lambda text: statements.append(text.split()[0]))
    )
    return statements


class Disk:
    """Between a journal and its file: it can be full, and it can be slow."""

    def __init__(self, journal: Journal) -> None:
        self.is_full = False
        self.may_write = threading.Event()
        self.may_write.set()
        self.was_reached = threading.Event()
        self._change_rows = journal._file._change_rows
        journal._file._change_rows = self  # type: ignore[method-assign]

    def __call__(self, *args: Any) -> None:
        self.was_reached.set()
        assert self.may_write.wait(30)
        self._change_rows(*args)
        if self.is_full:
            raise sqlite3.OperationalError("database or disk is full")

    @contextmanager
    def slow(self) -> Iterator[None]:
        """Let no write end before the block does."""
        self.was_reached.clear()
        self.may_write.clear()
        try:
            yield
        finally:
            self.may_write.set()


# ------------------------------------------------------------------------------- rows of items


async def test_what_has_not_ended_is_there_in_the_next_run_in_order(path: Path) -> None:
    journal = await opened(path)
    ids = [await begun(journal, f'{{"n": {n}}}', page_url="http://x/") for n in range(5)]
    journal.end(ids[1])
    await close(journal)

    journal = await opened(path)
    entries = await entries_of(journal)
    assert await to_awaitable(journal.count_unfinished()) == 4
    await close(journal)
    assert [entry.id for entry in entries] == [ids[0], *ids[2:]]
    entry = entries[0]
    assert (entry.stage, entry.item, entry.item_type) == ("pipelines", '{"n": 0}', TYPE)
    assert (entry.page_url, entry.missing, entry.attempts) == ("http://x/", None, 1)
    assert entry.began_at > 1.7e9


@given(item=st.text(), url=st.none() | st.text(), missing=st.none() | st.text())
@settings(max_examples=third_of(25))
async def test_every_text_comes_back_as_it_was(
    item: str, url: str | None, missing: str | None
) -> None:
    with TemporaryDirectory() as directory:
        journal = await opened(Path(directory, "journal"))
        await begun(journal, item, page_url=url, missing=missing, attempts=7)
        await close(journal)
        journal = await opened(Path(directory, "journal"))
        (entry,) = await entries_of(journal)
        await close(journal)
    assert (entry.item, entry.page_url, entry.missing, entry.attempts) == (item, url, missing, 7)


async def test_a_lone_surrogate_is_kept_as_json_has_it_and_harms_no_other_item(path: Path) -> None:
    journal = await opened(path)
    both = [begin(journal, '{"a": "\ud800"}'), begin(journal)]
    for _, safe in both:
        await to_awaitable(safe)
    await close(journal)
    journal = await opened(path)
    assert [entry.item for entry in await entries_of(journal)] == ['{"a": "\\ud800"}', ITEM]
    await close(journal)


async def test_ids_are_unique_among_runs_of_a_file_that_was_emptied(path: Path) -> None:
    ids = []
    for _ in range(3):
        journal = await opened(path)
        ids.append(await begun(journal))
        journal.end(ids[-1])
        await close(journal)
    assert len(set(ids)) == 3
    assert rows(path) == []


async def test_items_of_this_run_are_not_among_the_unfinished_nor_are_those_that_ended(
    path: Path,
) -> None:
    journal = await opened(path)
    ids = [await begun(journal) for _ in range(5)]
    await close(journal)
    journal = await opened(path)
    await begun(journal)
    journal.end(ids[0])
    assert [entry.id for entry in await entries_of(journal)] == ids[1:]
    await turn()
    assert [entry.id for entry in await entries_of(journal, 100)] == ids[1:]
    assert await to_awaitable(journal.count_unfinished()) == 4
    await close(journal)


async def test_each_run_that_tries_an_item_again_counts_under_the_same_id(path: Path) -> None:
    journal = await opened(path)
    item_id = await begun(journal)
    await close(journal)
    for attempts in (1, 2, 3):
        journal = await opened(path)
        (entry,) = await entries_of(journal)
        assert (entry.id, entry.attempts) == (item_id, attempts)
        await to_awaitable(journal.begin_again(entry.id))
        await close(journal)
    journal = await opened(path)
    again = journal.begin_again(item_id)
    journal.end(item_id)
    await to_awaitable(again)
    await close(journal)
    assert rows(path) == []


@pytest.mark.parametrize(
    ("column", "value", "shown"),
    [
        ("item", None, "item of the row at position 2 is NULL, and must be text"),
        ("item", b"{}", "item of the row at position 2 is b'{}', and must be text"),
        ("run", None, "run of the row at position 2 is NULL"),
        ("missing", b"", "must be text or NULL"),
        ("attempts", "many", "attempts of the row at position 2 is 'many', and must be an integer"),
        ("began_at", "now", "began_at of the row at position 2 is 'now', and must be a number"),
    ],
)
async def test_a_row_that_was_spoiled_by_hand_is_told_once_and_stops_no_other(
    path: Path, column: str, value: object, shown: str
) -> None:
    journal = await opened(path)
    ids = [await begun(journal) for _ in range(3)]
    await close(journal)
    edit(path, f"UPDATE items SET {column} = ? WHERE position = 2", value)
    errors = Errors()
    journal = await opened(path, errors)
    for limit in (1, 2, 3):
        found = await entries_of(journal, limit)
        assert [entry.id for entry in found] == [ids[0], ids[2]]
    await close(journal)
    (error,) = errors
    assert shown in str(error)
    assert str(path) in str(error)


async def test_bytes_that_are_no_text_are_read_as_far_as_they_are(path: Path) -> None:
    journal = await opened(path)
    await begun(journal)
    await close(journal)
    edit(path, "UPDATE items SET item = CAST(? AS TEXT)", b'{"a": "\xff"}')
    journal = await opened(path)
    (entry,) = await entries_of(journal)
    await close(journal)
    assert entry.item == '{"a": "\ufffd"}'


# ------------------------------------------------------------------------------- transactions


async def test_all_that_begins_and_ends_in_a_turn_is_one_transaction(path: Path) -> None:
    journal = await opened(path)
    first = [begin(journal) for _ in range(250)]
    await to_awaitable(first[-1][1])
    statements = await statements_of(journal)
    second = [begin(journal) for _ in range(250)]
    for item_id, _ in first:
        journal.end(item_id)
    assert not any(safe.called for _, safe in second)
    await to_awaitable(second[-1][1])
    assert all(safe.called for _, safe in second)
    await in_thread(journal, lambda it: it.set_trace_callback(None))
    assert statements == ["BEGIN", "INSERT", "INSERT", "INSERT", "DELETE", "COMMIT"]
    await close(journal)
    assert rows(path) == [item_id for item_id, _ in second]


async def test_what_comes_while_a_transaction_is_under_way_is_the_next(path: Path) -> None:
    journal = await opened(path)
    disk = Disk(journal)
    statements = await statements_of(journal)
    with disk.slow():
        item_id, safe = begin(journal)
        while not disk.was_reached.is_set():
            await turn()
        meanwhile = []
        for _ in range(5):
            meanwhile.append(begin(journal)[1])
            await turn()
        journal.end(item_id)
        await turn()
    await to_awaitable(safe)
    assert not any(each.called for each in meanwhile)
    await to_awaitable(meanwhile[-1])
    assert all(each.called for each in meanwhile)
    await in_thread(journal, lambda it: it.set_trace_callback(None))
    assert statements == ["BEGIN", "INSERT", "COMMIT", "BEGIN", "INSERT", "DELETE", "COMMIT"]
    await close(journal)


async def test_a_slow_disk_does_not_block_the_loop(path: Path) -> None:
    journal = await opened(path)
    disk = Disk(journal)
    with disk.slow():
        _, safe = begin(journal)
        while not disk.was_reached.is_set():
            await turn()
        for _ in range(100):
            await turn()
        assert not safe.called
    await to_awaitable(safe)
    await close(journal)


async def test_what_ends_in_the_turn_it_begins_in_is_never_written(path: Path) -> None:
    journal = await opened(path)
    statements = await statements_of(journal)
    item_id, safe = begin(journal)
    journal.end(item_id)
    await to_awaitable(safe)
    await in_thread(journal, lambda it: it.set_trace_callback(None))
    assert statements == []
    await close(journal)


async def test_an_item_that_moves_on_has_one_row_at_any_time(path: Path) -> None:
    journal = await opened(path)
    old = await begun(journal)
    statements = await statements_of(journal)
    new = await begun(journal, '{"moved": true}', replaces=old)
    await in_thread(journal, lambda it: it.set_trace_callback(None))
    assert statements == ["BEGIN", "INSERT", "DELETE", "COMMIT"]
    never_written, _ = begin(journal)
    last = await begun(journal, replaces=never_written)
    await close(journal)
    assert rows(path) == [new, last]


async def test_a_beginning_that_is_cancelled_disturbs_nobody(path: Path) -> None:
    journal = await opened(path)
    (cancelled_id, cancelled), (_, safe) = begin(journal), begin(journal)
    failures: list[Failure] = []
    cancelled.addErrback(failures.append)
    cancelled.cancel()
    journal.end(cancelled_id)
    await to_awaitable(safe)
    assert failures[0].check(*CANCELLED)
    await close(journal)
    assert len(rows(path)) == 1


OPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "begin", "end", "replace", "turn", "wait", "full", "room"]),
        st.integers(0, 1000),
    ),
    max_size=40,
)


@given(ops=OPS)
@example([("begin", 0), ("wait", 0), ("full", 0), ("replace", 0), ("turn", 0), ("replace", 0)])
@settings(max_examples=third_of(150))
async def test_after_any_schedule_the_file_holds_what_has_begun_and_not_ended(
    ops: list[tuple[str, int]],
) -> None:
    """An item whose beginning failed is there as the item that it replaces, if as any."""
    ids: list[str] = []
    safe: list[Deferred[None]] = []
    outcomes: dict[int, BaseException | None] = {}
    successors: dict[int, int] = {}
    ended: set[int] = set()
    in_flight: list[int] = []

    def note(outcome: Any, number: int) -> None:
        outcomes[number] = outcome.value if isinstance(outcome, Failure) else None

    def start(replaces: str | None = None) -> None:
        item_id, deferred = begin(journal, replaces=replaces)
        in_flight.append(len(ids))
        ids.append(item_id)
        safe.append(deferred.addBoth(note, len(safe)))

    def is_gone(number: int) -> bool:
        after = successors.get(number)
        return number in ended or (
            after is not None and (outcomes[after] is None or is_gone(after))
        )

    with TemporaryDirectory() as directory:
        path = Path(directory, "journal")
        journal = await opened(path)
        disk = Disk(journal)
        for op, choice in ops:
            if op == "begin":
                start()
            elif op == "turn":
                await turn()
            elif op == "wait" and safe:
                await to_awaitable(safe[-1])
            elif op in ("full", "room"):
                disk.is_full = op == "full"
            elif op in ("end", "replace") and in_flight:
                number = in_flight.pop(choice % len(in_flight))
                if op == "end":
                    ended.add(number)
                    journal.end(ids[number])
                else:
                    successors[number] = len(ids)
                    start(replaces=ids[number])
        for deferred in safe:
            await to_awaitable(deferred)
        disk.is_full = False
        await close(journal)
        assert all(it is None or isinstance(it, JournalError) for it in outcomes.values())
        assert rows(path) == [
            ids[number]
            for number in range(len(ids))
            if outcomes[number] is None and not is_gone(number)
        ]


# ------------------------------------------------------------------------- when writing fails


async def test_a_full_disk_fails_what_begins_and_is_told_once_and_forgets_no_end(
    path: Path,
) -> None:
    errors = Errors()
    journal = await opened(path, errors)
    disk = Disk(journal)
    ended, kept = await begun(journal), await begun(journal)
    disk.is_full = True
    unsafe = [begin(journal)[1] for _ in range(2)]
    journal.end(ended)
    for deferred in unsafe:
        error = await settled(deferred)
        assert isinstance(error, JournalError)
        assert isinstance(error, DeferKitError)
    assert isinstance(await settled(begin(journal)[1]), JournalError)
    assert [str(each) for each in errors] == [
        f"the journal {path} cannot be written: database or disk is full: make room on the disk"
    ]
    disk.is_full = False
    last = await begun(journal)
    statements = await statements_of(journal)
    last_but_one, last = last, await begun(journal)
    await in_thread(journal, lambda it: it.set_trace_callback(None))
    assert statements == ["BEGIN", "INSERT", "COMMIT"]
    journal.end(last_but_one)
    disk.is_full = True
    assert isinstance(await settled(begin(journal)[1]), JournalError)
    assert len(errors) == 2
    disk.is_full = False
    await close(journal)
    assert rows(path) == [kept, last]


@pytest.mark.parametrize("moves", [1, 2])
async def test_an_item_that_could_not_move_on_keeps_its_row_until_it_ends(
    path: Path, moves: int
) -> None:
    for ends in (False, True):
        journal = await opened(path)
        disk = Disk(journal)
        old = last = await begun(journal)
        disk.is_full = True
        waiting = []
        for _ in range(moves):
            last, unsafe = begin(journal, replaces=last)
            waiting.append(unsafe)
        for unsafe in waiting:
            assert isinstance(await settled(unsafe), JournalError)
        again, unsafe = begin(journal, replaces=last)
        assert isinstance(await settled(unsafe), JournalError)
        disk.is_full = False
        if ends:
            journal.end(again)
        await close(journal)
        assert (old in rows(path)) is not ends


async def test_an_item_that_ends_before_it_could_move_on_leaves_no_row(path: Path) -> None:
    journal = await opened(path)
    disk = Disk(journal)
    first, second = await begun(journal), await begun(journal)
    disk.is_full = True
    moved, unsafe = begin(journal, replaces=first)
    journal.end(moved)
    assert isinstance(await settled(unsafe), JournalError)
    with disk.slow():
        moved, unsafe = begin(journal, replaces=second)
        while not disk.was_reached.is_set():
            await turn()
        journal.end(moved)
    assert isinstance(await settled(unsafe), JournalError)
    disk.is_full = False
    await close(journal)
    assert rows(path) == []


async def test_an_item_that_moves_on_twice_while_the_disk_is_full_keeps_its_row(
    path: Path,
) -> None:
    for ends in (False, True):
        journal = await opened(path)
        disk = Disk(journal)
        old = await begun(journal)
        disk.is_full = True
        with disk.slow():
            moved, unsafe = begin(journal, replaces=old)
            while not disk.was_reached.is_set():
                await turn()
            moved, unsafe_again = begin(journal, replaces=moved)
        for deferred in (unsafe, unsafe_again):
            assert isinstance(await settled(deferred), JournalError)
        disk.is_full = False
        if ends:
            journal.end(moved)
        await begun(journal)
        await close(journal)
        assert (old in rows(path)) is not ends


async def test_sqlite_itself_finds_no_room_and_then_room_again(path: Path) -> None:
    journal = await opened(path)
    pages = await in_thread(journal, lambda it: it.execute("PRAGMA page_count").fetchone()[0])
    await in_thread(journal, lambda it: it.execute(f"PRAGMA max_page_count = {pages}").fetchall())
    _, large = begin(journal, "x" * 100_000)
    _, small = begin(journal)
    assert "is full" in str(await settled(large))
    assert "is full" in str(await settled(small))
    item_id = await begun(journal)
    await in_thread(journal, lambda it: it.execute("PRAGMA max_page_count = 1000").fetchall())
    large_id = await begun(journal, "x" * 100_000)
    await close(journal)
    assert rows(path) == [item_id, large_id]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a directory with 256 KiB of room, on a file system of its own."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = shutil.which("mount")
    if mount is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk here")
    command = [mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(directory)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


async def test_a_disk_that_is_full_and_gets_room_again(small_disk: Path) -> None:
    errors = Errors()
    journal = await opened(small_disk / "journal", errors)
    first = await begun(journal)
    (small_disk / "other").write_bytes(b"x" * 150_000)
    assert isinstance(await settled(begin(journal, "x" * 100_000)[1]), JournalError)
    assert len(errors) == 1
    assert "make room" in str(errors[0])
    (small_disk / "other").unlink()
    journal.end(first)
    last = await begun(journal)
    await close(journal)
    assert rows(small_disk / "journal") == [last]


async def test_a_journal_that_is_closed_on_a_full_disk_says_so_and_lets_go(
    small_disk: Path,
) -> None:
    path = small_disk / "journal"
    journal = await opened(path)
    first = await begun(journal)
    filler = small_disk / "other"
    room = os.statvfs(small_disk)
    filler.write_bytes(b"x" * (room.f_bavail * room.f_frsize))
    unsafe = begin(journal, "x" * 50_000)[1]
    closed, failed = await settled(journal.close()), await settled(unsafe)
    assert isinstance(closed, JournalError)
    assert isinstance(failed, JournalError)
    filler.unlink()
    journal = await opened(path)
    assert [entry.id for entry in await entries_of(journal)] == [first]
    await close(journal)


async def test_closing_writes_the_ends_that_could_not_be_written_and_says_when_it_cannot(
    path: Path,
) -> None:
    journal = await opened(path)
    disk = Disk(journal)
    item_id = await begun(journal)
    for _ in range(2):
        disk.is_full = True
        journal.end(item_id)
        _, unsafe = begin(journal)
        assert isinstance(await settled(unsafe), JournalError)
        with pytest.raises(JournalError, match="make room on the disk"):
            await close(journal)
        assert rows(path) == [item_id]
        journal = await opened(path)
        disk = Disk(journal)
    journal.end(item_id)
    disk.is_full = True
    assert isinstance(await settled(begin(journal)[1]), JournalError)
    disk.is_full = False
    await close(journal)
    assert rows(path) == []


async def test_what_cannot_be_written_for_another_reason_is_an_error_too(path: Path) -> None:
    errors = Errors()
    journal = await opened(path, errors)
    await in_thread(journal, lambda it: it.execute("PRAGMA query_only = ON"))
    assert "readonly" in str(await settled(begin(journal)[1]))
    assert "make the file and its directory writable" in str(errors[0])
    await in_thread(journal, lambda it: it.execute("PRAGMA query_only = OFF"))
    assert "cannot be written" in str(await settled(begin(journal, object())[1]))  # type: ignore[arg-type]
    await begun(journal)
    await close(journal)


@pytest.mark.skipif(sys.platform == "win32", reason="open files cannot be removed there")
@pytest.mark.parametrize("comes_back", [False, True])
async def test_a_file_that_is_removed_meanwhile_is_an_error(path: Path, comes_back: bool) -> None:
    journal = await opened(path)
    await begun(journal)
    shutil.rmtree(path.parent)
    if comes_back:
        path.parent.mkdir()
        path.with_name("placeholder").touch()
        path.touch()
    error = await settled(begin(journal)[1])
    assert "No such file" in str(error)
    assert "start the crawl again" in str(error)
    assert await settled(journal.close()) is None


async def test_an_on_error_that_fails_is_logged_and_loses_no_item(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: JournalError) -> None:
        raise RuntimeError("no ears")

    logged: list[Any] = []
    monkeypatch.setattr(
        "scrapy_deferkit.journal.logger.exception", lambda *args: logged.append(args)
    )
    journal = await opened(path, fail)
    disk = Disk(journal)
    disk.is_full = True
    assert isinstance(await settled(begin(journal)[1]), JournalError)
    disk.is_full = False
    await begun(journal)
    await close(journal)
    assert len(logged) == 1


# ------------------------------------------------------------------------- opening and closing


async def test_a_newer_file_is_refused_and_left_alone(path: Path) -> None:
    edit(path, "PRAGMA user_version = 7")
    before = path.read_bytes()
    with pytest.raises(JournalTooNew, match="is of version 7.*up to 1: upgrade"):
        await opened(path)
    assert path.read_bytes() == before


async def test_an_empty_file_becomes_a_journal(path: Path) -> None:
    path.touch()
    await close(await opened(path))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)


async def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"something else" * 100)
    with pytest.raises(JournalError, match="file is not a database: move the file away"):
        await opened(path)
    assert path.read_bytes() == b"something else" * 100


async def test_a_directory_that_is_not_there_is_an_error(path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be opened.*its directory must exist"):
        await opened(path.parent / "missing" / "journal")


async def test_a_second_journal_of_this_process_is_refused(path: Path) -> None:
    journal = await opened(path)
    with pytest.raises(JournalInUse, match="in use by.*a JOBDIR of its own") as caught:
        await opened(path)
    if Path("/proc/locks").exists():
        assert "this process" in str(caught.value)
    await begun(journal)
    before = threading.enumerate()
    with pytest.raises(JournalInUse):
        await opened(path)
    for thread in threading.enumerate():
        if thread not in before:
            thread.join(10)
            assert not thread.is_alive()
    with pytest.raises(JournalError, match="open already"):
        await to_awaitable(journal.open())
    await close(journal)
    await close(await opened(path))


async def test_a_journal_that_is_not_open_takes_nothing(path: Path) -> None:
    journal = Journal(path, Errors())
    for _ in range(2):
        item_id, unsafe = begin(journal)
        journal.end(item_id)
        waiting = [unsafe, journal.begin_again("a-1"), journal.unfinished(0, 1)]
        for deferred in (*waiting, journal.count_unfinished()):
            assert "is not open" in str(await settled(deferred))
        await to_awaitable(journal.open())
        await close(journal)
        await close(journal)
    assert rows(path) == []


async def test_closing_writes_what_waits_and_leaves_one_file(path: Path) -> None:
    journal = await opened(path)
    first = await begun(journal)
    second, safe = begin(journal)
    journal.end(first)
    closed = journal.close()
    await to_awaitable(safe)
    await to_awaitable(closed)
    assert rows(path) == [second]
    assert list(path.parent.iterdir()) == [path]


async def test_closing_waits_for_the_transaction_that_is_under_way(path: Path) -> None:
    journal = await opened(path)
    disk = Disk(journal)
    with disk.slow():
        first, first_safe = begin(journal)
        while not disk.was_reached.is_set():
            await turn()
        second, second_safe = begin(journal)
        closed = journal.close()
        await turn()
        assert not closed.called
    for deferred in (first_safe, second_safe, closed):
        await to_awaitable(deferred)
    assert rows(path) == [first, second]


async def test_opening_that_is_cancelled_can_be_closed(path: Path) -> None:
    journal = Journal(path, Errors())
    failures: list[Failure] = []
    opening = journal.open().addErrback(failures.append)
    opening.cancel()
    assert failures[0].check(*CANCELLED)
    await close(journal)
    await close(await opened(path))


async def test_the_write_ahead_log_stays_bounded(path: Path) -> None:
    journal = await opened(path)
    previous = await begun(journal)
    for _ in range(300):
        current = await begun(journal, "x" * 50_000)
        journal.end(previous)
        previous = current
    size = path.with_name(f"{path.name}-wal").stat().st_size
    await close(journal)
    assert size < 6_000_000
    assert path.stat().st_size < 1_000_000


# -------------------------------------------------------------------------- other processes


@contextmanager
def process(task: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        [sys.executable, PROCESS, task, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with started:
        try:
            yield started
        finally:
            started.kill()


def line_of(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


async def test_a_second_process_is_refused_until_the_first_is_killed(path: Path) -> None:
    with process("hold", path) as first:
        assert line_of(first) == "open"
        with process("hold", path) as second:
            refusal = line_of(second)
        with pytest.raises(JournalInUse) as caught:
            await opened(path)
        assert refusal == f"JournalInUse {caught.value}"
        assert str(path) in refusal
        assert "a JOBDIR of its own" in refusal
        if Path("/proc/locks").exists():
            assert f"process {first.pid}:" in refusal
        first.kill()
        first.wait()
        journal = await opened(path)
        await close(journal)


@pytest.mark.parametrize("lines", random.Random(1).sample(range(1, 400), 3))
async def test_what_was_safe_when_the_process_was_killed_is_in_the_file(
    path: Path, lines: int
) -> None:
    with process("write", path) as writer:
        assert line_of(writer) == "open"
        said = [line_of(writer) for _ in range(lines)]
        writer.kill()
        assert writer.stdout is not None
        said += writer.stdout.read().splitlines(keepends=False)
    begun_ids = [line.split()[1] for line in said if line.startswith("begun ") and len(line) > 38]
    ending = {line.split()[1] for line in said if line.startswith("ending ") and len(line) > 39}
    journal = await opened(path)
    left = {entry.id for entry in await entries_of(journal, 7)}
    await close(journal)
    assert begun_ids
    # The last line may have been cut short by the death of the process.
    assert {item_id for item_id in begun_ids[:-1] if item_id not in ending} <= left
