"""The spider middleware takes from a callback no more than it may hold."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from scrapy.exceptions import CloseSpider
from twisted.internet.defer import Deferred

from scrapy_deferkit import Chain, StackSpiderMiddleware
from scrapy_deferkit._runtime import call_soon

from ..steps import wait
from .local_site import Site, page
from .tracing import Shop, Trace, crawl


class Groups:
    """A processor that holds its items until *size* of them are there, and counts them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.at_once = 0
        self._held: list[Deferred[None]] = []

    async def __call__(self, item: Any, response: Any) -> Any:
        held: Deferred[None] = Deferred()
        self._held.append(held)
        self.at_once = max(self.at_once, len(self._held))
        if len(self._held) == self.size:
            call_soon(self._release)  # not at once: another may yet come, and be one too many
        await wait(held)
        return item

    def _release(self) -> None:
        held, self._held = self._held, []
        for deferred in held:
            deferred.callback(None)


async def crawl_by(site: Site, stack: Any, spider: Any = Shop, **settings: Any) -> Trace:
    site["/"] = page(*({"n": n} for n in range(12)))
    return await crawl(
        site.url("/"),
        settings={
            "SPIDER_MIDDLEWARES": {StackSpiderMiddleware: 543},
            "DEFERKIT_SPIDER_STACK": stack,
            **settings,
        },
        spider=spider,
    )


@pytest.mark.parametrize("bound", [1, 3, 4])
async def test_items_at_once_are_bounded_by_the_setting(site: Site, bound: int) -> None:
    groups = Groups(bound)
    trace = await crawl_by(site, Chain(groups), DEFERKIT_SPIDER_CONCURRENCY=str(bound))
    assert groups.at_once == bound
    assert sorted(item["n"] for item in trace.scraped) == list(range(12))


@pytest.mark.parametrize("is_slow", [False, True], ids=["plain", "waiting"])
async def test_an_endless_callback_is_taken_from_as_items_come_out(
    site: Site, is_slow: bool
) -> None:
    class Endless(Shop):
        taken = 0
        is_enough = False

        def parse(self, response: Any) -> Any:
            for n in itertools.count():
                if self.is_enough:
                    return
                self.taken = n + 1
                yield {"n": n}

    def close(item: Any, response: Any) -> Any:
        if item["n"] == 20:
            response.request.callback.__self__.is_enough = True
            raise CloseSpider("enough")
        return item

    class Requesting(Endless):
        async def start(self) -> Any:
            async for request in super().start():
                yield request.replace(callback=self.parse)

    steps = [Groups(4), close] if is_slow else [close]
    trace = await crawl_by(site, Chain(*steps), Requesting, DEFERKIT_SPIDER_CONCURRENCY=4)
    assert trace.reason == "enough"
    assert 21 <= trace.spider.taken <= 20 + 2 * 4
    assert len(trace.scraped) + len(trace.failed) == trace.spider.taken


async def test_nothing_is_taken_while_the_items_in_the_stack_wait(site: Site) -> None:
    taken: list[int] = []
    at_release: list[int] = []

    class Counting(Shop):
        def parse(self, response: Any) -> Any:
            for n in range(12):
                taken.append(n)
                yield {"n": n}

    class Last(Groups):
        def _release(self) -> None:
            at_release.append(len(taken))
            super()._release()

    trace = await crawl_by(site, Chain(Last(3)), Counting, DEFERKIT_SPIDER_CONCURRENCY=3)
    assert at_release == [3, 6, 9, 12]
    assert len(trace.scraped) == 12
