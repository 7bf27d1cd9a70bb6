"""The stack of the spider middleware works on the items of spider output, and on nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from scrapy.exceptions import CloseSpider, DropItem
from scrapy.http import Request

from scrapy_deferkit import Chain, Each, Parallel, StackConfigError, StackSpiderMiddleware, Tolerant
from scrapy_deferkit._runtime import turn

from ..steps import Broken
from .local_site import Site, page
from .tracing import Shop, Trace, crawl


async def crawl_by(site: Site, stack: Any, spider: Any = Shop, **settings: Any) -> Trace:
    return await crawl(
        site.url("/"),
        settings={
            "SPIDER_MIDDLEWARES": {StackSpiderMiddleware: 543},
            "DEFERKIT_SPIDER_STACK": stack,
            **settings,
        },
        spider=spider,
    )


def judge(item: Any, response: Any) -> Any:
    if item["title"] == "drop":
        raise DropItem("unwanted")
    if item["title"] == "break":
        raise Broken
    return item


def note_page(item: Any, response: Any) -> Any:
    item["page"] = response.url
    return item


async def slower_at_first(item: Any, response: Any) -> Any:
    for _ in range(3 * item["after"]):
        await turn()
    return item


STACK = Chain(judge, note_page)


async def test_items_pass_are_dropped_and_fail_and_requests_pass(site: Site) -> None:
    site["/"] = page({"title": "A"}, {"title": "break"}, "/next", {"title": "drop"}, {"title": "B"})
    site["/next"] = page({"title": "C"})
    trace = await crawl_by(site, STACK)
    assert sorted((it["title"], it["page"]) for it in trace.scraped) == [
        ("A", site.url("/")),
        ("B", site.url("/")),
        ("C", site.url("/next")),
    ]
    assert trace.dropped == [{"title": "drop"}]
    assert trace.failed == [({"title": "break"}, "Chain/judge", "Broken")]
    assert trace.of("spider_error") == []
    assert trace.reason == "finished"


async def test_the_output_keeps_its_order(site: Site) -> None:
    class Watcher:
        """Sees the output behind the middleware."""

        async def process_spider_output(self, response: Any, result: Any) -> Any:
            async for output in result:
                seen.append("request" if isinstance(output, Request) else output["title"])
                yield output

    seen: list[str] = []
    items: list[Any] = [{"title": title, "after": 5 - n} for n, title in enumerate("ABCDEF")]
    site["/"] = page(items[0], items[1], "/1", items[2], {"title": "drop"}, "/2", *items[3:])
    site["/1"] = site["/2"] = page()
    trace = await crawl_by(
        site,
        Chain(judge, slower_at_first),
        SPIDER_MIDDLEWARES={StackSpiderMiddleware: 543, Watcher: 100},
        CONCURRENT_ITEMS=1,
    )
    assert seen == ["A", "B", "request", "C", "request", "D", "E", "F"]
    assert [item["title"] for item in trace.scraped] == list("ABCDEF")


async def test_requests_pass_as_the_objects_that_they_are(site: Site) -> None:
    class Linking(Shop):
        def parse(self, response: Any) -> Any:
            yield {"title": "A"}
            for path in ("/1", "/2"):
                yield links.setdefault(path, response.follow(path, self.parse_more, meta={"a": 1}))

        def parse_more(self, response: Any) -> Any:
            yield {"title": response.url}

    links: dict[str, Request] = {}
    site["/"] = site["/1"] = site["/2"] = page()
    trace = await crawl_by(site, STACK, Linking)
    scheduled = [it["request"] for it in trace.of("request_scheduled")][1:]
    assert [id(request) for request in scheduled] == [id(request) for request in links.values()]
    assert len(trace.scraped) == 3


@pytest.mark.parametrize("style", ["coroutine", "generator"])
async def test_callbacks_may_be_asynchronous(site: Site, style: str) -> None:
    class Generating(Shop):
        async def parse(self, response: Any) -> Any:
            for item in response.json():
                await turn()
                yield item

    class Returning(Shop):
        async def parse(self, response: Any) -> Any:
            await turn()
            return response.json()

    site["/"] = page({"title": "A"}, {"title": "drop"}, {"title": "B"})
    trace = await crawl_by(site, STACK, Generating if style == "generator" else Returning)
    assert sorted(item["title"] for item in trace.scraped) == ["A", "B"]
    assert trace.dropped == [{"title": "drop"}]


async def test_items_before_an_error_of_the_callback_are_kept(site: Site) -> None:
    class Failing(Shop):
        def parse(self, response: Any) -> Any:
            yield from response.json()
            raise Broken("callback")

    site["/"] = page({"title": "A", "after": 2}, {"title": "B", "after": 0})
    trace = await crawl_by(site, Chain(slower_at_first), Failing)
    assert [item["title"] for item in trace.scraped] == ["A", "B"]
    (error,) = trace.of("spider_error")
    assert isinstance(error["failure"].value, Broken)


async def test_what_comes_out_goes_through_the_pipelines(site: Site) -> None:
    class Pipeline:
        def process_item(self, item: Any) -> Any:
            return {**item, "piped": True}

    site["/"] = page({"title": "A"}, {"title": "drop"})
    trace = await crawl_by(site, STACK, ITEM_PIPELINES={Pipeline: 1})
    assert trace.scraped == [{"title": "A", "page": site.url("/"), "piped": True}]
    assert trace.dropped == [{"title": "drop"}]


async def test_close_spider_from_a_processor_ends_the_crawl_with_its_reason(site: Site) -> None:
    def enough(item: Any, response: Any) -> Any:
        if item["title"] == "last":
            raise CloseSpider("enough")
        return item

    site["/"] = page({"title": "A"}, {"title": "last"}, {"title": "B"}, "/next")
    site["/next"] = page({"title": "never"})
    trace = await crawl_by(site, Chain(enough))
    assert trace.reason == "enough"
    assert sorted(item["title"] for item in trace.scraped) == ["A", "B"]
    assert [item for item, *_ in trace.failed] == [{"title": "last"}]


@pytest.mark.parametrize(
    "stack",
    [
        Chain(judge, lambda item: item),
        Parallel(judge, Chain(lambda item: item)),
        Tolerant((judge, lambda failure, item: item)),
        Each("offers", lambda offer: offer),
        Each("offers", judge, on_error=lambda failure, offer: offer),
    ],
    ids=str,
)
async def test_a_processor_that_takes_no_response_is_refused(site: Site, stack: Any) -> None:
    with pytest.raises(StackConfigError) as refusal:
        # With no handlers, since Scrapy does not close those of a crawl that never began.
        await crawl_by(site, stack, DOWNLOAD_HANDLERS={"http": None, "https": None})
    message = str(refusal.value)
    assert message.startswith("DEFERKIT_SPIDER_STACK: ")
    assert "/lambda" in message
    assert ", response)" in message
    assert site.requests == []


async def test_a_pipeline_in_the_stack_gets_the_item_alone(site: Site) -> None:
    class Pipeline:
        def process_item(self, item: Any) -> Any:
            return {**item, "piped": True}

    site["/"] = page({"title": "A"})
    trace = await crawl_by(site, Chain(judge, Pipeline))
    assert trace.scraped == [{"title": "A", "piped": True}]
