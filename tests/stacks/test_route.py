"""A Route gives each item to the stack for its kind."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from scrapy_deferkit import Chain, NoRoute, Route, StackConfigError, step_of
from scrapy_deferkit.testing import mock_crawler, run_stack

from ..steps import Broken


@dataclasses.dataclass
class Product:
    title: str = ""


class Book(Product):
    pass


class Novel(Book):
    pass


class Review:
    pass


def named(name: str) -> Any:
    """Make a processor that gives its name."""

    def processor(item: Any, *args: Any) -> Any:
        return (name, *args)

    return processor


@pytest.mark.parametrize(
    ("item", "route"),
    [
        (Product(), "product"),
        (Book(), "book"),
        (Novel(), "book"),
        ({"n": 1}, "one"),
        ({"n": 2}, "many"),
        ({}, "otherwise"),
    ],
)
async def test_the_nearest_class_comes_first_then_predicates_in_order(
    item: Any, route: str
) -> None:
    stack = Route(
        {
            lambda item: isinstance(item, dict) and item.get("n") == 1: named("one"),
            Product: named("product"),
            lambda item: isinstance(item, dict) and "n" in item: named("many"),
            Book: named("book"),
        },
        default=named("otherwise"),
    )
    assert await stack(item, "response") == (route, "response")


async def test_an_item_that_no_route_takes_fails_and_names_the_routes() -> None:
    stack = Chain(Route({Book: Chain(named("book"))}, name="kinds"), name="shop")
    run = await run_stack(stack, [Review()])
    (failed,) = run.failed
    assert isinstance(failed.exception, NoRoute)
    assert failed.step == "shop/kinds"
    for part in ("shop/kinds has no route for a Review", "routes for Book", "or a default= "):
        assert part in str(failed.exception)


async def test_default_may_pass_or_drop() -> None:
    items = [Review(), Book()]
    run = await run_stack(Route({Book: named("book")}, default="pass"), items)
    assert run.scraped == [items[0], ("book",)]
    crawler = mock_crawler()
    run = await run_stack(Route({Book: named("book")}, default="drop"), items, crawler=crawler)
    assert crawler.stats.get_value("deferkit/Route/unrouted") == 1
    assert (run.scraped, run.dropped) == ([("book",)], [items[0]])


async def test_a_failure_has_the_path_through_the_route() -> None:
    def fail(item: Any) -> Any:
        raise Broken

    with pytest.raises(Broken) as caught:
        await Route({Book: Chain(fail, name="books")}, name="kinds")(Book())
    assert step_of(caught.value) == "kinds/books/fail"


async def test_a_component_in_a_route_is_opened_and_closed() -> None:
    log = []

    class Pipeline:
        def open_spider(self) -> None:
            log.append("open")

        def close_spider(self) -> None:
            log.append("close")

        def process_item(self, item: Any) -> Any:
            log.append("process")
            return item

    await run_stack(Route({Book: Pipeline}, default="pass"), [Book()])
    assert log == ["open", "process", "close"]


async def some_day(item: Any) -> bool:
    return True


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Route({}), "a dict of processors by item class"),
        (lambda: Route([len]), "a dict of processors"),  # type: ignore[arg-type]
        (lambda: Route({"Book": len}), "'Book' .str. is neither a class nor a predicate"),
        (lambda: Route({object: len, bool: len}, default="pass"), "default='pass' is never"),
        (lambda: Route({object: len, lambda item: True: len}), "is never reached"),
        (lambda: Route({some_day: len}), "some_day is a coroutine function"),
        (lambda: Route({Book: 3}), "3 .int. is not a processor"),
        (lambda: Route({Book: len}, default="ignore"), r"'ignore'.*path\), \"pass\" or"),
    ],
)
def test_wrong_routes_fail_when_the_stack_is_built(make: Any, message: str) -> None:
    with pytest.raises(StackConfigError, match=message):
        make()
