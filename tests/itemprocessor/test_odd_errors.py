"""Whatever a pipeline raises, its item fails and the others go on."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from scrapy_deferkit import Chain, Each, Fallback, Retry, StackSpiderMiddleware
from scrapy_deferkit._config import Config
from scrapy_deferkit._runtime import turn
from scrapy_deferkit.codec import Encoded
from scrapy_deferkit.deadletters import DeadLetters
from scrapy_deferkit.delivery import Delivery
from scrapy_deferkit.exceptions import ClosingError, add_notes, mark_step, step_of, text_of
from scrapy_deferkit.testing import mock_crawler, run_stack

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


class Answering(Exception):
    """Answers whatever it is asked, with what is not text."""

    def __getattr__(self, name: str) -> Any:
        if name == "__failure__":  # Twisted 24.3 makes its Failure of the answer
            raise AttributeError(name)
        return object()


class OddText(str):
    __slots__ = ()

    def __getitem__(self, key: Any) -> Any:
        raise ZeroDivisionError

    replace = encode = __getitem__  # type: ignore[assignment]


class Odd(Exception):
    def __str__(self) -> str:
        return OddText("odd")


ODD = [NoException, Frozen, Mute, Answering, Odd]
STORED = ["StepAborted", "Frozen", "Mute", "Answering", "Odd"]


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
@pytest.mark.parametrize("kind", [NoAttributes, OddNotes, Frozen, Answering])
def test_an_exception_of_any_class_has_the_step_it_rose_in_and_no_other(
    kind: type[Exception],
) -> None:
    error = kind()
    assert step_of(error) is None
    mark_step(error, "price")
    mark_step(error, "shop/price")
    add_notes(error, ["more"])
    assert step_of(error) == "shop/price"
    assert vars(error)["__notes__"] == ["In the step shop/price", "more"]


@pytest.mark.no_runtime
def test_a_step_that_is_not_text_is_none() -> None:
    error = ValueError()
    error.deferkit_step = object()  # type: ignore[attr-defined]
    assert step_of(error) is None


@pytest.mark.no_runtime
def test_the_text_of_an_exception_is_text_of_no_class_of_its_own() -> None:
    assert type(text_of(Odd())) is str
    assert text_of(Odd()) == "odd"


class _Untouchable(type):
    def __getattribute__(cls, name: str) -> Any:
        raise ZeroDivisionError


def of_a_class_without_a_name() -> Exception:
    return _Untouchable("Untouchable", (Exception,), {"__str__": Mute.__str__})()


@pytest.mark.no_runtime
@pytest.mark.parametrize("url", [None, OddText("data:,"), ODD, Mute()], ids=type)
@pytest.mark.parametrize("make", [Answering, Mute, Odd, of_a_class_without_a_name])
def test_all_of_a_row_is_text_whatever_the_error_and_the_page_are(make: Any, url: Any) -> None:
    crawler = mock_crawler()
    delivery = Delivery(crawler, Config.from_settings(crawler.settings))
    try:
        raise make()
    except Exception as error:
        row = delivery._failed("1", "pipelines", Encoded("{}", "dict", ()), url, None, error)
    texts = {field.name: type(getattr(row, field.name)) for field in fields(row)}
    del texts["at"]
    assert set(texts.values()) <= {str, bool, type(None)}
    assert texts["error_type"] is texts["error"] is texts["traceback"] is str


@pytest.mark.parametrize("pipeline", [Later, AtOnce])
async def test_an_item_fails_whatever_its_pipeline_raises(pipeline: Any, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/letters.sqlite"
    trace = await crawl_with(pipeline, pages=[page(*numbered(8))], DEFERKIT_DEAD_LETTERS_URL=url)
    errors = [error for _, _, error in sorted(trace.failed, key=lambda it: it[0]["number"])]
    assert errors == STORED
    assert numbers(trace.scraped) == [5, 6, 7]
    letters = list(DeadLetters(url).select())
    assert sorted(it.error_type.rpartition(".")[2] for it in letters) == sorted(STORED)
    assert all((it.step or "").endswith(pipeline.__name__) for it in letters)
    assert trace.reason == "finished"


@pytest.mark.parametrize("step", [fail_later, fail_at_once])
async def test_an_item_fails_whatever_the_spiders_stack_raises(step: Any) -> None:
    trace = await crawl_with(
        pages=[page(*numbered(8))],
        SPIDER_MIDDLEWARES={StackSpiderMiddleware: 100},
        DEFERKIT_SPIDER_STACK=Chain(step),
    )
    assert numbers(item for item, *_ in trace.failed) == [0, 1, 2, 3, 4]
    assert numbers(trace.scraped) == [5, 6, 7]
    assert trace.crawler.stats.get_value("deferkit/items/dead_lettered") == len(ODD)
    assert trace.reason == "finished"


class Wordless(Mute):
    __repr__ = Mute.__str__


def raise_wordless(value: Any) -> Any:
    raise Wordless


@pytest.mark.parametrize(
    "stack",
    [
        Fallback(raise_wordless, raise_wordless),
        Retry(raise_wordless, on=Wordless, attempts=3, wait=lambda state: 0),
        Each("tags", raise_wordless),
    ],
    ids=type,
)
async def test_what_is_noted_of_earlier_failures_does_not_replace_the_last(stack: Any) -> None:
    (failed,) = (await run_stack(stack, [{"tags": [1, 2]}])).failed
    assert type(failed.exception) is Wordless
    assert "Wordless that has no text)>" in "".join(vars(failed.exception)["__notes__"])


async def test_an_element_is_dropped_whatever_its_failure_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended = await run_stack(Each("tags", raise_wordless, on_error="drop"), [{"tags": [1, 2]}])
    assert ended.scraped == [{"tags": []}]
    assert "was dropped: <" in caplog.messages[0]


@pytest.mark.no_runtime
def test_all_that_failed_to_close_is_told_of() -> None:
    error = ClosingError("shop", [Wordless(), ValueError("no")])
    assert str(error).endswith("Wordless: (a Wordless that has no text); ValueError: no")
