"""The gate: each item is processed with its response at hand, and requests pass."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import scrapy
from scrapy import signals
from scrapy.dupefilters import RFPDupeFilter
from scrapy.exceptions import CloseSpider
from scrapy.http import Request
from scrapy.logformatter import LogFormatter
from scrapy.statscollectors import MemoryStatsCollector
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from scrapy_deferkit import Chain, DeferKitItemProcessor, StackSpiderMiddleware, _slots
from scrapy_deferkit._runtime import Latch, call_soon, sleep, to_awaitable, turn, uses_asyncio
from scrapy_deferkit._scrapy import is_closing
from scrapy_deferkit.signals import item_dead_lettered

from ..crawls.tracing import Trace
from ..steps import Broken
from .crawling import Starting, crawl_with, letters_at, numbered, numbers, page

NOWHERE = "http://127.0.0.1:9/"


class Counting:
    """Has each item wait for some turns of the loop, and counts how many do at once."""

    def open_spider(self) -> None:
        self.inside = self.most = 0

    async def process_item(self, item: Any) -> Any:
        self.inside += 1
        self.most = max(self.most, self.inside)
        await sleep(0.02)
        self.inside -= 1
        return item


class Failing:
    async def process_item(self, item: Any) -> Any:
        await turn()
        if item.get("bad"):
            raise Broken
        return item


# ------------------------------------------------------------------------------------ what comes in


class Errback(Starting):
    """Yields what it is given from the errback of a download that fails."""

    async def start(self) -> AsyncIterator[Any]:
        yield Request(NOWHERE, errback=self.yield_all)

    def yield_all(self, failure: Failure) -> Any:
        yield from self.items


class AsyncErrback(Errback):
    async def yield_all(self, failure: Failure) -> AsyncIterator[Any]:  # type: ignore[override]
        for item in self.items:
            await turn()
            yield item


class Gathering:
    """Lets no item go on before the first 41 are here."""

    def open_spider(self) -> None:
        self.number = 0
        self.gathered = Latch()

    async def process_item(self, item: Any) -> Any:
        self.number += 1
        if self.number < 41:
            await self.gathered.wait()
        else:
            self.gathered.open()
        return item


@pytest.mark.parametrize("spider", [Errback, AsyncErrback])
async def test_items_of_errbacks_are_processed_at_once_each_with_its_page(
    url: str, spider: type[Errback]
) -> None:
    items = [*numbered(40), {"number": 40, "bad": True}, Request(page({"number": 41}))]
    trace = await crawl_with(
        Gathering, Failing, items=items, spider=spider, DEFERKIT_DEAD_LETTERS_URL=url
    )
    assert numbers(trace.scraped) == [*range(40), 41]
    assert [item["number"] for item, *_ in trace.failed] == [40]
    assert all(isinstance(it["response"], Failure) for it in trace.of("item_error"))
    (letter,) = letters_at(url)
    assert letter.page_url == NOWHERE


class Mixed(Starting):
    """Yields items and requests in turn."""

    def parse(self, response: Any) -> Any:
        if response.meta.get("is_last"):
            return
        for number in range(30):
            if number % 3:
                yield {"number": number}
            yield Request(f"data:,{number}", meta={"is_last": True})


async def test_requests_keep_their_order_whatever_items_are_between_them() -> None:
    trace = await crawl_with(Counting, pages=["data:,first"], spider=Mixed)
    scheduled = [it["request"].url for it in trace.of("request_scheduled")]
    assert scheduled == ["data:,first", *(f"data:,{number}" for number in range(30))]
    assert len(trace.scraped) == 20


async def test_a_request_behind_an_item_does_not_wait_for_it() -> None:
    class WaitsForThePage:
        ready: Deferred[None]

        def open_spider(self) -> None:
            self.ready = Deferred()

        async def process_item(self, item: Any) -> Any:
            if item["number"]:
                self.ready.callback(None)
            else:
                await to_awaitable(self.ready)
            return item

    class Two(Starting):
        def parse(self, response: Any) -> Any:
            is_first = response.url == "data:,0"
            yield {"number": int(not is_first)}
            if is_first:
                yield Request("data:,1")

    trace = await crawl_with(WaitsForThePage, pages=["data:,0"], spider=Two)
    assert numbers(trace.scraped) == [0, 1]


async def test_items_that_have_begun_are_processed_when_the_callback_raises() -> None:
    class Raises(Starting):
        def parse(self, response: Any) -> Any:
            yield from numbered(5)
            raise Broken

    trace = await crawl_with(Counting, pages=["data:,"], spider=Raises)
    assert numbers(trace.scraped) == list(range(5))
    assert len(trace.of("spider_error")) == 1
    assert trace.reason == "finished"


class CutsOff:
    """Takes the first six outputs only."""

    async def process_spider_output(self, response: Any, result: Any) -> AsyncIterator[Any]:
        number = 0
        async for output in result:
            yield output
            number += 1
            if number == 6:
                return


async def test_items_that_have_begun_are_processed_when_the_output_is_cut_short() -> None:
    trace = await crawl_with(
        Counting, pages=["data:,first"], spider=Mixed, SPIDER_MIDDLEWARES={CutsOff: 100}
    )
    assert trace.reason == "finished"
    assert len(trace.of("request_scheduled")) == 5
    assert numbers(trace.scraped) == [1, 2]


class Refusing(RFPDupeFilter):
    """Cannot look at one request."""

    def request_seen(self, request: Request) -> bool:
        if request.url == "data:,7":
            raise ConnectionError("the filter is away")
        return super().request_seen(request)


async def test_a_request_that_cannot_be_scheduled_costs_no_other_and_no_item() -> None:
    trace = await crawl_with(
        Counting, pages=["data:,first"], spider=Mixed, DUPEFILTER_CLASS=Refusing
    )
    assert trace.reason == "finished"
    assert len(trace.scraped) == 20
    assert len(trace.of("response_received")) == 30
    assert any("<GET data:,7> cannot be scheduled" in it for it in trace.messages)


async def test_an_asynchronous_callback_is_iterated_in_one_task() -> None:
    tasks: set[Any] = set()

    class OneTask(Starting):
        async def parse(self, response: Any) -> AsyncIterator[Any]:  # type: ignore[override]
            for number in range(20):
                tasks.add(asyncio.current_task() if uses_asyncio() else None)
                yield {"number": number}

    trace = await crawl_with(Counting, pages=["data:,"], spider=OneTask, CONCURRENT_ITEMS=2)
    assert len(trace.scraped) == 20
    assert len(tasks) == 1


class CancelsItself:
    """Cancels what runs the item, as a library that has lost count of its scopes may do."""

    async def process_item(self, item: Any) -> Any:
        await turn()
        if item["number"] == 2:
            if uses_asyncio():
                asyncio.current_task().cancel()  # type: ignore[union-attr]
                await asyncio.sleep(1)
            raise CancelledError
        return item


async def test_an_item_whose_worker_is_cancelled_fails_and_the_others_go_on(url: str) -> None:
    trace = await crawl_with(
        CancelsItself, pages=[page(*numbered(6))], DEFERKIT_DEAD_LETTERS_URL=url
    )
    assert trace.reason == "finished"
    assert numbers(trace.scraped) == [0, 1, 3, 4, 5]
    assert [item["number"] for item, *_ in trace.failed] == [2]
    assert len(letters_at(url)) == 1


class Interrupting(dict[str, Any]):
    """Raises what is not an Exception, whatever one asks of it."""

    def values(self) -> Any:
        raise BaseException("nothing is to be seen here")

    keys = items = __iter__ = values  # type: ignore[assignment]


async def test_an_item_that_cannot_be_looked_at_is_processed_and_harms_no_other() -> None:
    class Yields(Starting):
        def parse(self, response: Any) -> Any:
            yield from numbered(3)
            yield Interrupting(number=3)
            yield from numbered(3, 4)

    trace = await crawl_with(Counting, pages=["data:,"], spider=Yields)
    assert trace.reason == "finished"
    assert numbers(trace.scraped) == list(range(7))


async def test_close_spider_of_a_callback_closes_at_once_whatever_its_items_wait_for() -> None:
    class Closes(Starting):
        def parse(self, response: Any) -> Any:
            yield {"number": 0}
            raise CloseSpider("enough")

    class UntilClosing:
        @classmethod
        def from_crawler(cls, crawler: Any) -> Any:
            self = cls()
            self.crawler = crawler
            return self

        async def process_item(self, item: Any) -> Any:
            while not is_closing(self.crawler):
                await turn()
            return item

    trace = await crawl_with(UntilClosing, pages=["data:,"], spider=Closes)
    assert (trace.reason, len(trace.scraped)) == ("enough", 1)


async def test_requests_behind_items_of_start_that_fill_the_slots_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_slots, "QUIET", 0.02)
    monkeypatch.setattr(_slots, "VERY_QUIET", 0.05)

    class Needs(Starting):
        async def start(self) -> AsyncIterator[Any]:
            yield {"number": 0}
            yield {"number": 1}
            yield Request(page({"number": 2}))

    class WaitsForTheLast:
        def open_spider(self) -> None:
            self.ready = Latch()

        async def process_item(self, item: Any) -> Any:
            if item["number"] == 2:
                self.ready.open()
            else:
                await self.ready.wait()
            return item

    trace = await crawl_with(WaitsForTheLast, spider=Needs, DEFERKIT_CONCURRENT_ITEMS=2)
    assert numbers(trace.scraped) == [0, 1, 2]


async def test_nothing_more_is_taken_from_a_callback_while_an_item_waits_for_a_slot() -> None:
    taken: list[int] = []

    class Lazy(Starting):
        def parse(self, response: Any) -> Any:
            for number in range(50):
                taken.append(number)
                yield {"number": number}

    class Looking(Counting):
        async def process_item(self, item: Any) -> Any:
            assert len(taken) <= item["number"] + 4
            return await super().process_item(item)

    trace = await crawl_with(Looking, pages=["data:,"], spider=Lazy, DEFERKIT_CONCURRENT_ITEMS=3)
    assert not trace.failed
    assert numbers(trace.scraped) == list(range(50))


async def test_concurrent_items_is_the_bound_of_one_response() -> None:
    trace = await crawl_with(Counting, pages=[page(*numbered(50))], CONCURRENT_ITEMS=7)
    assert trace.crawler.get_item_pipeline(Counting).most == 7
    assert len(trace.scraped) == 50


class OldStyle:
    def process_start_requests(self, start_requests: Any, spider: Any) -> Any:
        return start_requests


@pytest.mark.skipif(scrapy.version_info >= (2, 16), reason="old-style start requests are gone")
@pytest.mark.filterwarnings("ignore::scrapy.exceptions.ScrapyDeprecationWarning")
async def test_old_style_start_requests_are_let_pass_and_their_items_are_processed(
    url: str,
) -> None:
    class Old(Starting):
        def start_requests(self) -> Any:
            yield Request(page(*numbered(3)))
            yield {"number": 3}
            yield {"number": 4, "bad": True}

        start = None  # type: ignore[assignment]

    trace = await crawl_with(
        Counting,
        Failing,
        spider=Old,
        SPIDER_MIDDLEWARES={OldStyle: 100},
        DEFERKIT_DEAD_LETTERS_URL=url,
    )
    assert numbers(trace.scraped) == [0, 1, 2, 3]
    assert [letter.step for letter in letters_at(url)] == ["Failing"]


# ----------------------------------------------------------------------------- stopping and closing


class Stopping:
    """Stops the crawl, in the way that is set, when the third item comes; the others wait long."""

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        self = cls()
        self.crawler = crawler
        self.begun = []
        return self

    async def process_item(self, item: Any) -> Any:
        self.begun.append(item["number"])
        if item["number"] == 2:
            how = self.crawler.settings["HOW"]
            engine = self.crawler.engine
            call_soon(lambda: engine and how(self.crawler))
        for _ in range(20):
            await turn()
        return item


def stop(crawler: Any) -> None:
    """Do what Ctrl-C does."""
    from scrapy_deferkit._runtime import spawn

    spawn(crawler.stop_async(), lambda _: None)


def close(crawler: Any) -> None:
    from scrapy_deferkit._runtime import spawn

    spawn(crawler.engine.close_spider_async(reason="enough"), lambda _: None)


@pytest.mark.parametrize(("how", "reason"), [(stop, "shutdown"), (close, "enough")])
async def test_items_of_start_that_are_in_when_the_crawl_closes_end(
    url: str, how: Any, reason: str
) -> None:
    trace = await crawl_with(
        Stopping,
        items=numbered(30),
        HOW=how,
        DEFERKIT_CONCURRENT_ITEMS=4,
        DEFERKIT_DEAD_LETTERS_URL=url,
    )
    assert trace.reason == reason
    begun = trace.crawler.get_item_pipeline(Stopping).begun
    assert begun[:3] == [0, 1, 2]
    assert len(begun) < 30
    assert numbers(trace.scraped) == sorted(begun)
    names = [name for name, _ in trace.signals]
    last = max(index for index, name in enumerate(names) if name == "item_scraped")
    assert last < names.index("spider_closed")
    # One waited for a slot.
    assert [error for *_, error in trace.failed] == ["StepCancelled"] * len(trace.failed)
    assert len(letters_at(url)) == len(trace.failed) <= 1


async def test_an_item_of_start_is_not_in_the_task_that_iterates_start() -> None:
    of_start: list[Any] = []
    of_items: list[Any] = []

    class Iterated(Starting):
        async def start(self) -> AsyncIterator[Any]:
            async with Same():
                yield {"number": 0}
                await turn()
                yield {"number": 1}

    class Same:
        """Notes the task it is entered in and left in, as asyncio.timeout() does."""

        async def __aenter__(self) -> None:
            of_start.append(current())

        async def __aexit__(self, *_: object) -> None:
            of_start.append(current())

    def current() -> Any:
        return asyncio.current_task() if uses_asyncio() else None

    class Noting:
        async def process_item(self, item: Any) -> Any:
            await turn()
            of_items.append(current())
            return item

    await crawl_with(Noting, spider=Iterated)
    entered_in, left_in = of_start
    assert entered_in is left_in
    assert len(of_items) == 2
    if uses_asyncio():
        assert entered_in not in of_items


class ClosingPipe:
    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        self = cls()
        self.crawler = crawler
        return self

    async def process_item(self, item: Any) -> Any:
        if item["number"] == 1:
            await self.crawler.engine.close_spider_async(reason="enough")
        return item


async def test_a_crawl_whose_pipeline_awaits_its_end_closes_when_that_item_has_timed_out() -> None:
    trace = await crawl_with(ClosingPipe, pages=[page(*numbered(3))], DEFERKIT_ITEM_TIMEOUT=0.1)
    assert trace.reason == "enough"
    assert numbers(trace.scraped) == [0, 2]
    assert [(item["number"], error) for item, _, error in trace.failed] == [(1, "StepTimeout")]


# ------------------------------------------------------------------------------------------ visits


class AwaitsFirst(DeferKitItemProcessor):
    async def process_item_async(self, item: Any) -> Any:
        for _ in range(5 - item["number"] % 5):
            await turn()
        return await super().process_item_async(item)


class OldProcessItem(DeferKitItemProcessor):
    def process_item(self, item: Any, spider: Any) -> Any:
        self._set_compat_spider(spider)
        from scrapy_deferkit._runtime import to_deferred

        return to_deferred(self.process_item_async(item))


class Other(DeferKitItemProcessor):
    """Processes another object than the one that has come."""

    async def process_item_async(self, item: Any) -> Any:
        return await super().process_item_async({**item})


@pytest.mark.filterwarnings("ignore::scrapy.exceptions.ScrapyDeprecationWarning")
@pytest.mark.parametrize("processor", [AwaitsFirst, OldProcessItem, Other])
async def test_an_item_processor_of_ones_own_never_gets_the_visit_of_another_item(
    url: str, processor: Any
) -> None:
    pages = [page({"number": number, "bad": True}) for number in range(20)]
    trace = await crawl_with(
        Failing, pages=pages, ITEM_PROCESSOR=processor, DEFERKIT_DEAD_LETTERS_URL=url
    )
    assert len(trace.failed) == 20
    letters = letters_at(url)
    assert len(letters) == 20
    for letter in letters:
        number = letter.item.partition('"number": ')[2].partition(",")[0]
        known = page({"number": int(number), "bad": True})
        assert letter.page_url == known


class Twice:
    """Submits the item itself again, and one of its own."""

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        self = cls()
        self.crawler = crawler
        return self

    async def process_item(self, item: Any) -> Any:
        await turn()
        if not item.setdefault("again", 0):
            item["again"] = 1
            scraper = self.crawler.engine.scraper
            await scraper.start_itemproc_async(item, response=None)
            await scraper.start_itemproc_async({"again": 1, "bad": True}, response=None)
        return item


async def test_what_a_pipeline_submits_has_no_page_and_a_letter_of_its_own(url: str) -> None:
    trace = await crawl_with(
        Twice, Failing, pages=[page({"number": 0})], DEFERKIT_DEAD_LETTERS_URL=url
    )
    assert len(trace.scraped) == 2
    (letter,) = letters_at(url)
    assert letter.page_url is None


# ------------------------------------------------------------------------------------- containment


class Odd(dict[str, Any]):
    """Refuses whatever one may ask of an item."""

    def _refuse(self, *_: object) -> Any:
        raise Broken

    __eq__ = __repr__ = __copy__ = __deepcopy__ = __reduce_ex__ = _refuse  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


def odd_items() -> list[Any]:
    cyclic: dict[str, Any] = {"number": 1, "bad": True}
    cyclic["self"] = cyclic
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    return [Odd(number=0, bad=True), cyclic, {"number": 2, "bad": True, "deep": deep}]


class Formatter(LogFormatter):
    def item_error(self, item: Any, exception: Any, response: Any, spider: Any) -> Any:
        if item["number"] == 3:
            raise ZeroDivisionError
        return None

    def scraped(self, item: Any, response: Any, spider: Any) -> Any:
        if item["number"] == 4:
            raise ZeroDivisionError
        return None


class DownStats(MemoryStatsCollector):
    def inc_value(self, key: str, *args: Any, **kwargs: Any) -> None:
        if key.startswith("deferkit/"):
            raise ConnectionError("the stats are down")
        super().inc_value(key, *args, **kwargs)


class Handlers:
    """Handles signals badly."""

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        self = cls()
        crawler.signals.connect(self.fail, item_dead_lettered)
        crawler.signals.connect(self.be_cancelled, item_dead_lettered)
        crawler.signals.connect(self.be_cancelled, signals.item_scraped)
        return self

    async def fail(self) -> None:
        await turn()
        raise Broken

    async def be_cancelled(self) -> None:
        cancelled: Deferred[None] = Deferred()
        call_soon(cancelled.cancel)
        await to_awaitable(cancelled)


@pytest.mark.parametrize(
    ("bound", "has_stats"),
    [
        (1, False),
        (100, True),
        pytest.param(1, True, marks=pytest.mark.crawl),
        pytest.param(100, False, marks=pytest.mark.crawl),
    ],
)
async def test_whatever_is_wrong_with_one_item_harms_no_other(
    url: str, bound: int, has_stats: bool
) -> None:
    items = [*odd_items(), {"number": 3, "bad": True}, *numbered(20, 4)]

    class Yields(Starting):
        def parse(self, response: Any) -> Any:
            yield from items

    settings: dict[str, Any] = {} if has_stats else {"STATS_CLASS": DownStats}
    trace = await crawl_with(
        Failing,
        pages=["data:,"],
        spider=Yields,
        LOG_FORMATTER=Formatter,
        EXTENSIONS={Handlers: 1},
        DEFERKIT_CONCURRENT_ITEMS=bound,
        DEFERKIT_DEAD_LETTERS_URL=url,
        **settings,
    )
    assert trace.reason == "finished"
    assert len(letters_at(url)) == 4
    scraped = numbers(trace.scraped)
    assert scraped == [number for number in range(4, 24) if number != 4 or number in scraped]


class NeverEnds:
    """Has handlers that never end, until the crawl is stopped."""

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        self = cls()
        self.held: list[Deferred[None]] = []
        self.number = 0
        self.crawler = crawler
        for signal in (item_dead_lettered, signals.item_scraped):
            crawler.signals.connect(self.hold, signal)
        return self

    async def hold(self, item: Any) -> None:
        self.number += 1
        if self.number == 30:  # all have come here, with two slots
            for held in self.held:
                held.callback(None)
            return
        held: Deferred[None] = Deferred()
        self.held.append(held)
        await to_awaitable(held)


async def test_a_handler_that_does_not_end_holds_no_slot(url: str) -> None:
    items = [{"number": number, "bad": number % 2 == 0} for number in range(30)]
    trace = await crawl_with(
        Failing,
        pages=[page(*items)],
        EXTENSIONS={NeverEnds: 1},
        DEFERKIT_CONCURRENT_ITEMS=2,
        DEFERKIT_DEAD_LETTERS_URL=url,
    )
    assert len(trace.scraped) == len(trace.failed) == 15


# -------------------------------------------------------------------- the spider's stack is cut off


async def check(item: Any, response: Any) -> Any:
    await turn()
    await turn()
    if item["number"] % 2:
        raise Broken
    return item


class First:
    """Takes the first item of a page, and then does what is set."""

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        self = cls()
        self.end = crawler.settings["END"]
        return self

    async def process_spider_output(self, response: Any, result: Any) -> AsyncIterator[Any]:
        async for output in result:
            yield output
            if self.end is not None:
                raise self.end
            return


@pytest.mark.parametrize("end", [None, KeyError("middleware"), CloseSpider("enough")])
async def test_when_output_is_cut_off_each_item_in_the_spiders_stack_ends_once(
    url: str, end: Any
) -> None:
    pages = [page(*numbered(8, start)) for start in range(0, 48, 8)]
    dead: list[Any] = []

    class Listening:
        @classmethod
        def from_crawler(cls, crawler: Any) -> Any:
            self = cls()
            crawler.signals.connect(self.note, item_dead_lettered)
            return self

        def note(self, item: Any) -> None:
            dead.append(item["number"])

    trace: Trace = await crawl_with(
        Counting,
        pages=pages,
        SPIDER_MIDDLEWARES={StackSpiderMiddleware: 90, First: 50},
        DEFERKIT_SPIDER_STACK=Chain(check),
        DEFERKIT_DEAD_LETTERS_URL=url,
        EXTENSIONS={Listening: 1},
        END=end,
        CONCURRENT_REQUESTS=1,
    )
    failed = numbers(item for item, *_ in trace.failed)
    assert len(set(failed)) == len(failed)
    assert sorted(dead) == failed
    letters = letters_at(url)
    assert len(letters) == len(failed)
    assert all(letter.page_url in pages for letter in letters)
    scraped = numbers(trace.scraped)
    if not isinstance(end, CloseSpider):
        assert len(scraped) == 6
        assert not set(scraped) & set(failed)
        # Those that were taken from the callback; it is lazy.
        assert {number for number in range(48) if number % 8 < 2} <= {*failed, *scraped}
