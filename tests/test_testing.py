"""What the package gives to tests: a crawler with no network, and a run of a stack."""

from __future__ import annotations

from typing import Any

import pytest
import scrapy
from scrapy.exceptions import DropItem
from scrapy.http import Request, TextResponse
from scrapy.spiders import CrawlSpider

from scrapy_deferkit import Chain, ClosingError, Parallel, StackConfigError
from scrapy_deferkit.testing import mock_crawler, run_stack

from .steps import Broken


class Shop(scrapy.Spider):
    name = "shop"
    custom_settings = {"BOT_NAME": "ours", "USER_AGENT": "shop"}


def judge(item: Any, *args: Any) -> Any:
    item["seen"] = args
    if item["title"] == "drop":
        raise DropItem("unwanted")
    if item["title"] == "break":
        raise Broken
    return item


class Component:
    """Notes what is asked of it."""

    def __init__(self, crawler: Any) -> None:
        self.crawler = crawler
        self.events = crawler.settings["EVENTS_OF"]()

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        return cls(crawler)

    async def open_spider(self) -> None:
        self.events.append("opened")

    async def close_spider(self) -> None:
        self.events.append("closed")
        if self.crawler.settings.getbool("UNCLOSED"):
            raise Broken

    def process_item(self, item: Any) -> Any:
        self.events.append(item["title"])
        return item


def crawler_with_events(**settings: Any) -> tuple[Any, list[str]]:
    events: list[str] = []
    return mock_crawler({"EVENTS_OF": lambda: events, **settings}), events


async def test_a_crawler_has_what_components_ask_for() -> None:
    crawler = mock_crawler({"DEFERKIT_CHAIN": ["shop.clean"]})
    assert crawler.settings["DEFERKIT_CHAIN"] == ["shop.clean"]
    assert crawler.stats is not None
    crawler.stats.inc_value("n", 2)
    assert crawler.stats.get_value("n") == 2
    assert crawler.request_fingerprinter is not None
    assert crawler.request_fingerprinter.fingerprint(Request("https://shop.example"))
    assert crawler.logformatter is not None
    assert crawler.spider is not None
    assert crawler.spider.crawler is crawler
    heard: list[Any] = []

    async def hear(item: Any) -> None:
        heard.append(item)

    crawler.signals.connect(hear, scrapy.signals.item_scraped)
    await crawler.signals.send_catch_log_async(scrapy.signals.item_scraped, item="A")
    assert heard == ["A"]


@pytest.mark.no_runtime
def test_a_crawler_has_its_spider_and_the_settings_of_its_class() -> None:
    crawler = mock_crawler({"BOT_NAME": "project", "DOWNLOAD_DELAY": 3}, Shop)
    assert type(crawler.spider) is Shop
    assert crawler.spidercls is Shop
    assert crawler.spider.settings is crawler.settings
    assert crawler.settings["BOT_NAME"] == "ours"
    assert crawler.settings.getint("DOWNLOAD_DELAY") == 3


@pytest.mark.no_runtime
def test_a_crawler_takes_an_instance_of_a_spider_as_it_is() -> None:
    spider = Shop(site="https://shop.example")
    crawler = mock_crawler(spider=spider)
    assert crawler.spider is spider
    assert spider.crawler is crawler
    assert spider.settings is crawler.settings
    assert spider.settings["USER_AGENT"] == "shop"
    assert spider.site == "https://shop.example"


@pytest.mark.no_runtime
def test_a_spider_class_without_a_name_gets_one() -> None:
    class Nameless(CrawlSpider):
        rules = ()

    crawler = mock_crawler(spider=Nameless)
    assert isinstance(crawler.spider, Nameless)
    assert crawler.spider.name


@pytest.mark.no_runtime
def test_crawlers_share_nothing() -> None:
    settings = {"LISTED": [1]}
    first, second = mock_crawler(settings), mock_crawler(settings)
    assert first.stats is not second.stats
    assert first.settings["LISTED"] is not second.settings["LISTED"]


async def test_a_run_tells_what_became_of_each_item() -> None:
    items = [{"title": title} for title in ("A", "drop", "break", "B")]
    run = await run_stack(Chain(judge, name="shop"), items)
    assert run.scraped == [{"title": "A", "seen": ()}, {"title": "B", "seen": ()}]
    assert run.dropped == [{"title": "drop"}]  # as it was given
    (failed,) = run.failed
    assert failed.item == {"title": "break"}
    assert failed.step == "shop/judge"
    assert isinstance(failed.exception, Broken)


async def test_extra_arguments_go_to_the_processors() -> None:
    response = TextResponse("https://shop.example")
    run = await run_stack(Chain(judge), [{"title": "A"}], response)
    assert run.scraped == [{"title": "A", "seen": (response,)}]


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        (judge, r"judge \(function\) is not a stack"),
        (Chain, r"Chain \(type\) is not a stack"),
        (f"{__name__}.judge", rf"'{__name__}.judge' \(function\) is not a stack"),
    ],
)
async def test_what_is_no_stack_is_refused(stack: Any, message: str) -> None:
    with pytest.raises(StackConfigError, match=message):
        await run_stack(stack, [])


@pytest.mark.parametrize("items", [{"title": "A"}, "title"])
async def test_one_item_in_the_place_of_several_is_refused(items: Any) -> None:
    with pytest.raises(StackConfigError, match=r"expected a list of items, as in \[item\]"):
        await run_stack(Chain(judge), items)


async def test_a_stack_that_cannot_be_called_like_this_is_refused() -> None:
    with pytest.raises(StackConfigError, match=r"Chain/lambda .* \(item, crawler\)"):
        await run_stack(Chain(lambda item: item), [{}], mock_crawler())


async def test_a_run_opens_and_closes_the_stack_once() -> None:
    crawler, events = crawler_with_events()
    stack = Parallel(Chain(Component))
    run = await run_stack(stack, [{"title": "A"}, {"title": "B"}], crawler=crawler)
    assert run.scraped == [{"title": "A"}, {"title": "B"}]
    assert events == ["opened", "A", "B", "closed"]


async def test_a_run_closes_the_stack_when_the_items_break_off() -> None:
    def items() -> Any:
        yield {"title": "A"}
        raise Broken

    crawler, events = crawler_with_events()
    with pytest.raises(Broken):
        await run_stack(Chain(Component), items(), crawler=crawler)
    assert events == ["opened", "A", "closed"]


async def test_what_closing_raises_is_raised() -> None:
    crawler, _ = crawler_with_events(UNCLOSED=True)
    with pytest.raises(ClosingError) as closing:
        await run_stack(Chain(Component), [], crawler=crawler)
    assert [type(error) for error in closing.value.errors] == [Broken]
