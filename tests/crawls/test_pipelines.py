"""Each pipeline runs from settings alone, in a real crawl."""

from __future__ import annotations

from typing import Any

import pytest
from scrapy.exceptions import DropItem

from scrapy_deferkit import (
    Chain,
    ChainPipeline,
    EachPipeline,
    Parallel,
    ParallelPipeline,
    StackPipeline,
    Tolerant,
    TolerantPipeline,
)

from ..steps import Broken
from .local_site import Site, page
from .tracing import Trace, crawl

PAGE = page({"title": " A "}, {"title": "drop"}, {"title": "break"}, {"title": "B"})


def clean(item: Any) -> Any:
    item["title"] = item["title"].strip()
    return item


async def check(item: Any) -> Any:
    if item["title"] == "drop":
        raise DropItem("unwanted")
    if item["title"] == "break":
        raise Broken
    return item


def measure(item: Any) -> Any:
    item["length"] = len(item["title"])
    return item


def excuse(failure: Any, item: Any) -> Any:
    item["excuse"] = type(failure.value).__name__
    return item


def double(offer: Any) -> Any:
    if offer == "break":
        raise Broken
    return offer * 2


def keep_large(offer: Any) -> Any:
    if offer < 10:
        raise DropItem("small")
    return offer


STACK = Chain(clean, Parallel(check, measure), name="shop")


class OwnPipeline(StackPipeline):
    stack = Tolerant(clean, check, name="own")


class PathPipeline(StackPipeline):
    stack = f"{__name__}.STACK"


async def crawl_page(site: Site, **settings: Any) -> Trace:
    site["/"] = PAGE
    trace = await crawl(site.url("/"), settings=settings)
    assert trace.reason == "finished"
    return trace


def by_title(items: list[Any]) -> list[Any]:
    return sorted(items, key=lambda item: item["title"])


async def test_the_chain(site: Site) -> None:
    trace = await crawl_page(
        site, ITEM_PIPELINES={ChainPipeline: 1}, DEFERKIT_CHAIN=[clean, check, measure]
    )
    assert by_title(trace.scraped) == [{"title": "A", "length": 1}, {"title": "B", "length": 1}]
    assert trace.dropped == [{"title": "drop"}]
    assert trace.failed == [({"title": "break"}, "Chain/check", "Broken")]


async def test_the_chain_by_import_paths_as_the_command_line_gives_them(site: Site) -> None:
    trace = await crawl_page(
        site,
        ITEM_PIPELINES={"scrapy_deferkit.ChainPipeline": 1},
        DEFERKIT_CHAIN=f"{__name__}.clean, {__name__}.check",
    )
    assert by_title(trace.scraped) == [{"title": "A"}, {"title": "B"}]
    assert trace.failed == [({"title": "break"}, "Chain/check", "Broken")]


async def test_the_tolerant_chain(site: Site) -> None:
    trace = await crawl_page(
        site,
        ITEM_PIPELINES={TolerantPipeline: 1},
        DEFERKIT_TOLERANT=[clean, (check, f"{__name__}.excuse"), measure],
    )
    assert by_title(trace.scraped) == [
        {"title": "A", "length": 1},
        {"title": "B", "length": 1},
        {"title": "break", "excuse": "Broken", "length": 5},
    ]
    assert trace.dropped == [{"title": "drop"}]
    assert trace.failed == []


async def test_the_branches(site: Site) -> None:
    trace = await crawl_page(
        site, ITEM_PIPELINES={ParallelPipeline: 1}, DEFERKIT_PARALLEL=[clean, check, measure]
    )
    assert by_title(trace.scraped) == [{"title": "A", "length": 3}, {"title": "B", "length": 1}]
    assert trace.dropped == [{"title": "drop"}]
    assert trace.failed == [({"title": "break"}, "Parallel/check", "Broken")]


async def test_the_elements(site: Site) -> None:
    site["/"] = page({"offers": [3, 7, 9]}, {"offers": [1, "break"]}, {})
    trace = await crawl(
        site.url("/"),
        settings={
            "ITEM_PIPELINES": {EachPipeline: 1},
            "DEFERKIT_EACH": [
                {"field": "offers", "processor": double, "concurrency": 2, "name": "double"},
                {"field": "offers", "processor": f"{__name__}.keep_large", "on_error": "drop"},
            ],
        },
    )
    assert sorted(trace.scraped, key=len) == [{}, {"offers": [14, 18]}]
    assert trace.failed == [({"offers": [1, "break"]}, "Each/double/double", "Broken")]


async def test_one_entry_for_the_elements_needs_no_list(site: Site) -> None:
    site["/"] = page({"offers": [3, "break"]})
    entry = {"field": "offers", "processor": double, "on_error": "drop"}
    trace = await crawl(
        site.url("/"), settings={"ITEM_PIPELINES": {EachPipeline: 1}, "DEFERKIT_EACH": entry}
    )
    assert trace.scraped == [{"offers": [6]}]
    assert trace.crawler.stats is not None
    assert trace.crawler.stats.get_value("deferkit/Each/elements_dropped") == 1


@pytest.mark.parametrize("stack", [STACK, f"{__name__}.STACK"], ids=["object", "path"])
async def test_any_stack_from_the_setting(site: Site, stack: Any) -> None:
    trace = await crawl_page(site, ITEM_PIPELINES={StackPipeline: 1}, DEFERKIT_STACK=stack)
    assert by_title(trace.scraped) == [{"title": "A", "length": 1}, {"title": "B", "length": 1}]
    assert trace.dropped == [{"title": "drop"}]
    assert trace.failed == [({"title": "break"}, "shop/Parallel/check", "Broken")]


async def test_the_stack_of_a_subclass_needs_no_setting_and_ignores_it(site: Site) -> None:
    trace = await crawl_page(
        site, ITEM_PIPELINES={OwnPipeline: 1}, DEFERKIT_STACK="nowhere.to_be.found"
    )
    assert by_title(trace.scraped) == [{"title": "A"}, {"title": "B"}]
    assert trace.failed == [({"title": "break"}, "own/check", "Broken")]


async def test_several_pipelines_stand_side_by_side(site: Site) -> None:
    trace = await crawl_page(
        site,
        ITEM_PIPELINES={PathPipeline: 1, TolerantPipeline: 2, ChainPipeline: 3},
        DEFERKIT_TOLERANT=[(lambda item: 1 / 0, excuse)],
        DEFERKIT_CHAIN=[measure],
    )
    assert by_title(trace.scraped) == [
        {"title": title, "length": 1, "excuse": "ZeroDivisionError"} for title in "AB"
    ]


async def test_each_item_ends_once_with_the_response_it_came_from(site: Site) -> None:
    trace = await crawl_page(site, ITEM_PIPELINES={ChainPipeline: 1}, DEFERKIT_CHAIN=[check])
    ends = [(name, it) for name, it in trace.signals if name.startswith("item_")]
    assert sorted((name, it["item"]["title"]) for name, it in ends) == [
        ("item_dropped", "drop"),
        ("item_error", "break"),
        ("item_scraped", " A "),
        ("item_scraped", "B"),
    ]
    assert {it["response"].url for _, it in ends} == {site.url("/")}
    (dropped,) = trace.of("item_dropped")
    assert isinstance(dropped["exception"], DropItem)
