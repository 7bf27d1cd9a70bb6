"""Whatever a pipeline raises, its item fails and the others go on."""

from __future__ import annotations

from typing import Any

import pytest

from scrapy_deferkit import Chain, StackSpiderMiddleware
from scrapy_deferkit._runtime import turn
from scrapy_deferkit.exceptions import mark_step, step_of

from .crawling import crawl_with, numbered, numbers, page


class NoException(BaseException):
    pass


class NoAttributes(Exception):
    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


class Frozen(Exception):
    def __setattr__(self, name: str, value: Any) -> None:
        raise ZeroDivisionError


class OddNotes(Exception):
    __notes__ = 5


class Mute(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


ODD = [NoException, Frozen, Mute]


async def fail_later(item: Any, *_: Any) -> Any:
    await turn()
    return fail_at_once(item)


def fail_at_once(item: Any, *_: Any) -> Any:
    if item["number"] < len(ODD):
        raise ODD[item["number"]]
    return item


class Later:
    async def process_item(self, item: Any) -> Any:
        return await fail_later(item)


class AtOnce:
    def process_item(self, item: Any) -> Any:
        return fail_at_once(item)


@pytest.mark.no_runtime
@pytest.mark.parametrize("kind", [NoAttributes, OddNotes])
def test_an_exception_may_refuse_to_be_told_its_step(kind: type[Exception]) -> None:
    error = kind()
    mark_step(error, "shop/price")
    assert step_of(error) in (None, "shop/price")


@pytest.mark.parametrize("pipeline", [Later, AtOnce])
async def test_an_item_fails_whatever_its_pipeline_raises(pipeline: Any) -> None:
    trace = await crawl_with(pipeline, pages=[page(*numbered(8))])
    errors = ["StepAborted", "Frozen", "Mute"]
    assert [error for _, _, error in sorted(trace.failed, key=lambda it: it[0]["number"])] == errors
    assert numbers(trace.scraped) == [3, 4, 5, 6, 7]
    assert trace.crawler.stats.get_value("deferkit/items/dead_lettered") == len(ODD)
    assert trace.reason == "finished"


@pytest.mark.parametrize("step", [fail_later, fail_at_once])
async def test_an_item_fails_whatever_the_spiders_stack_raises(step: Any) -> None:
    trace = await crawl_with(
        pages=[page(*numbered(8))],
        SPIDER_MIDDLEWARES={StackSpiderMiddleware: 100},
        DEFERKIT_SPIDER_STACK=Chain(step),
    )
    assert numbers(item for item, *_ in trace.failed) == [0, 1, 2]
    assert numbers(trace.scraped) == [3, 4, 5, 6, 7]
    assert trace.reason == "finished"
