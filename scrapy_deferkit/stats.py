"""What each step did, and how long it took: counted while the crawl runs, in bounded memory."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any

from scrapy.exceptions import DropItem
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ._config import COMPACT, Config
from ._crawl import crawl_of
from ._engine import is_pending
from ._runtime import CANCELLED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from scrapy.crawler import Crawler

    from ._stack import Stack

# Twenty to each power of ten, from a microsecond to more than a day: a value and the bound of its
# bucket are at most an eighth apart.
_BOUNDS = [10 ** (exponent / 20) for exponent in range(-120, 101)]

FOLD_AT = 2048
"""How many durations are gathered before they are counted."""


class Latencies:
    """Durations in seconds, counted in buckets whose width grows geometrically.

    The idea is that of G. Tene's HdrHistogram. Durations are gathered in ``recent``, the cheapest
    thing to do with one, and counted some thousands at a time by :meth:`fold`.
    """

    __slots__ = ("_buckets", "_longest", "_total", "recent")

    def __init__(self) -> None:
        self.recent: list[float] = []
        self._buckets = [0] * (len(_BOUNDS) + 1)
        self._total = 0.0
        self._longest = 0.0

    def note(self, seconds: float) -> None:
        """Gather a duration, and count those that have gathered when there are many."""
        self.recent.append(seconds)
        if len(self.recent) >= FOLD_AT:
            self.fold()

    def fold(self) -> None:
        """Count what has been gathered."""
        recent = self.recent
        if not recent:
            return
        recent.sort()
        ends = pairwise([0, *(bisect_right(recent, bound) for bound in _BOUNDS), len(recent)])
        self._buckets = [
            number + end - start for number, (start, end) in zip(self._buckets, ends, strict=True)
        ]
        self._total += sum(recent)
        self._longest = max(self._longest, recent[-1])
        recent.clear()

    @property
    def count(self) -> int:
        """How many durations there are."""
        return sum(self._buckets) + len(self.recent)

    @property
    def total(self) -> float:
        """The sum of all durations."""
        return self._total + sum(self.recent)

    @property
    def longest(self) -> float:
        """The longest duration; 0 where there is none."""
        return max(self._longest, max(self.recent, default=0.0))

    def add(self, other: Latencies) -> None:
        """Count the durations of *other* too."""
        other.fold()
        self._buckets = list(map(sum, zip(self._buckets, other._buckets, strict=True)))
        self._total += other._total
        self._longest = max(self._longest, other._longest)

    def percentile(self, percent: float) -> float:
        """Give what *percent* per cent of the durations do not exceed, to within an eighth."""
        self.fold()
        rank = self.count * percent / 100
        seen = 0
        for bound, number in zip((*_BOUNDS, self._longest), self._buckets, strict=True):
            seen += number
            if number and seen >= rank:
                return min(bound, self._longest)
        return 0.0

    def times(self) -> dict[str, float]:
        """Return what :class:`StepFigures` has of the durations, by its names."""
        percentiles = {f"p{percent}": self.percentile(percent) for percent in (50, 95, 99)}
        return {"total": self.total, **percentiles, "longest": self.longest}


@dataclass(frozen=True)
class StepFigures:
    """What one step did up to now; times are in seconds, and hold its waiting."""

    path: str
    entered: int
    ok: int
    dropped: int
    failed: int
    cancelled: int
    retried: int
    total: float
    p50: float
    p95: float
    p99: float
    longest: float
    stack: str = ""
    """Of a pipeline that is a stack: its name, with which the paths of its steps begin."""


# The stats keys of times, and their names in StepFigures.
_TIMES = {"seconds": "total", "p50": "p50", "p95": "p95", "p99": "p99", "max": "longest"}


class StepRecord:
    """The counts of one step."""

    __slots__ = ("_path", "cancelled", "dropped", "failed", "inside", "note_time", "root", "work")

    def __init__(self, path: Callable[[], str], root: str = "") -> None:
        self._path = path
        self.root = root
        self.work = Latencies()
        self.note_time = self.work.note
        self.inside = 0
        self.dropped = 0
        self.failed = 0
        self.cancelled = 0

    @property
    def path(self) -> str:
        """The path of the step, which is known once its stack has its place."""
        return self._path()

    def note(self, error: BaseException) -> None:
        """Count that the step ended with *error*."""
        if isinstance(error, DropItem):
            self.dropped += 1
        elif isinstance(error, CANCELLED):
            self.cancelled += 1
        else:
            self.failed += 1

    def note_result(self, result: Any, needs_result: bool) -> None:
        """Count that the step ended with *result*; ``None`` fails a step that *needs_result*."""
        if isinstance(result, Failure):
            assert result.value is not None
            self.note(result.value)
        elif result is None and needs_result:
            self.failed += 1

    def begin(self) -> float:
        """Count that something has begun; return when, for :meth:`end`."""
        self.inside += 1
        return perf_counter()

    def end(self, started: float) -> None:
        """Count that what has *started* then has ended."""
        self.inside -= 1
        self.note_time(perf_counter() - started)

    def wait(self, pending: Any, started: float, needs_result: bool = False) -> Any:
        """Count *pending*, the result of the step, when it has come."""
        if not isinstance(pending, Deferred):
            return self._await(pending, started, needs_result)
        self.inside += 1

        def note(result: Any) -> Any:
            self.inside -= 1
            self.note_time(perf_counter() - started)
            self.note_result(result, needs_result)
            return result

        return pending.addBoth(note)

    async def _await(self, pending: Awaitable[Any], started: float, needs_result: bool) -> Any:
        self.inside += 1
        try:
            result = await pending
        except BaseException as error:
            self.note(error)
            raise
        finally:
            self.inside -= 1
            self.note_time(perf_counter() - started)
        self.note_result(result, needs_result)
        return result

    def joined_with(self, other: StepRecord) -> StepRecord:
        """Give the counts of both."""
        joined = StepRecord(self._path, self.root)
        for record in (self, other):
            joined.work.add(record.work)
            for what in ("inside", "dropped", "failed", "cancelled"):
                setattr(joined, what, getattr(joined, what) + getattr(record, what))
        return joined

    def figures(self, retried: int) -> StepFigures:
        """Give the counts as they are now."""
        ended = self.work.count
        return StepFigures(
            path=self.path,
            entered=ended + self.inside,
            ok=ended - self.dropped - self.failed - self.cancelled,
            dropped=self.dropped,
            failed=self.failed,
            cancelled=self.cancelled,
            retried=retried,
            **self.work.times(),
            stack=self.root,
        )


class StepStats:
    """The steps of one crawl: those of its pipelines, and those of every stack bound from now on.

    :meth:`of` gives the one of a crawler.
    """

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler
        self._records: list[StepRecord] = []
        is_compact = Config.from_settings(crawler.settings).step_stats == COMPACT
        self.items = StepRecord("items".__str__) if is_compact else None
        """The items in the pipelines, each as a whole; they are in the stats instead of steps."""

        self.waiting = Latencies()
        """How long items waited for a slot, those that had to."""

        self.before_reading: Callable[[], object] | None = None
        """Called before counts are read: for those that are only then counted."""

    @classmethod
    def of(cls, crawler: Crawler) -> StepStats:
        """Return the stats of *crawler*, whose stacks are counted from now on."""
        crawl = crawl_of(crawler)
        stats: StepStats | None = crawl.stats
        if stats is None:
            stats = crawl.stats = cls(crawler)
            crawl.observers.append(stats._watch)
        return stats

    def add(self, path: Callable[[], str], root: str = "") -> StepRecord:
        """Give the record of another step, whose path *path* tells.

        Where a stack is all there is in it, *root* is the stack's name: its retries count here.
        """
        record = StepRecord(path, root)
        self._records.append(record)
        return record

    def _watch(self, stack: Stack, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Give *call*, the step *name* of *stack*, so that it is counted."""
        record = self.add(lambda: f"{stack.path}/{name}")
        needs_result = stack.needs_results

        def counted(item: Any, /, *args: Any, **kwargs: Any) -> Any:
            started = perf_counter()
            try:
                result = call(item, *args, **kwargs)
            except BaseException as error:
                record.note_time(perf_counter() - started)
                record.note(error)
                raise
            if is_pending(result):
                return record.wait(result, started, needs_result)
            record.note_time(perf_counter() - started)
            record.note_result(result, needs_result)
            return result

        vars(counted)["__wrapped__"] = call  # for who reads its signature
        return counted

    def figures(self) -> list[StepFigures]:
        """Give what every step has done up to now, in the order in which they were built."""
        if self.before_reading is not None:
            self.before_reading()
        # Two stacks may have one name, and the steps in them one path: they are counted together.
        records: dict[str, StepRecord] = {}
        for record in self._records:
            path = record.path
            records[path] = records[path].joined_with(record) if path in records else record
        count = self._crawler.stats.get_value
        return [
            record.figures(
                sum(count(f"deferkit/{each}/retried", 0) for each in {path, record.root or path})
            )
            for path, record in records.items()
        ]

    def publish(self) -> None:
        """Put the counts into the crawl's stats; the keys are in docs/addon.md."""
        if self.items is not None:
            step = self.items.figures(retried=0)
            counts = {"in": step.entered, "ok": step.ok, "dropped": step.dropped}
            self._publish("items", counts, {name: vars(step)[name] for name in ("p95", "longest")})
            self._crawler.stats.inc_value("deferkit/items/failed", 0)  # whoever fails counts it
            return
        for step in self.figures():
            if step.entered:
                some = {name: getattr(step, name) for name in ("dropped", "failed", "cancelled")}
                some = {name: number for name, number in some.items() if number}
                self._publish(step.path, {"in": step.entered, "ok": step.ok, **some}, vars(step))
        if self.waiting.count:
            self._publish("slot", {"waited": self.waiting.count}, self.waiting.times())

    def _publish(self, prefix: str, counts: dict[str, int], times: dict[str, float]) -> None:
        seconds = {key: round(times[name], 6) for key, name in _TIMES.items() if name in times}
        for key, value in {**counts, **seconds}.items():
            self._crawler.stats.set_value(f"deferkit/{prefix}/{key}", value)


def step_stats(crawler: Crawler) -> list[StepFigures]:
    """Give what each step of *crawler* has done up to now; it may be called at any time.

    Steps are counted under the item processor, unless ``DEFERKIT_STEP_STATS`` is off.
    """
    stats = crawl_of(crawler).stats
    return [] if stats is None else stats.figures()
