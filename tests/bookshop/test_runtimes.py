"""The crawl of the local site: the same on each runtime, and each stack has a part in it."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .crawling import ASYNCIO, NO_REACTOR, QUICK, TWISTED, Crawl, crawl, troubles_in

pytestmark = pytest.mark.crawl

RUNTIMES = {"asyncio": ASYNCIO, "twisted": TWISTED, "none": NO_REACTOR}

_PLACE = """
import bookshop.pipelines, bookshop.stacks
bookshop.pipelines.PlacePipeline.stack = bookshop.stacks.shelf
"""
_ASK_ONCE = """
from bookshop import processors, services
from scrapy_deferkit import Tolerant, Timeout
once = (Timeout(services.FetchReviews, 2), processors.without_reviews)
DEFERKIT_PARALLEL[0] = Tolerant(once, name="reviews")
"""

# What is taken out of the settings, by what is lost with it.
WITHOUT = {
    "nothing": "",
    "the request chain": "del DEFERKIT_REQUEST_CHAIN",
    "the response chain": "del DEFERKIT_RESPONSE_CHAIN",
    "the downloader middleware": "DOWNLOADER_MIDDLEWARES = {}",
    "the spider middleware": "SPIDER_MIDDLEWARES = {}",
    "the chain": 'del ITEM_PIPELINES["scrapy_deferkit.ChainPipeline"]',
    "the tolerant steps": 'del ITEM_PIPELINES["scrapy_deferkit.TolerantPipeline"]',
    "the parallel branches": 'del ITEM_PIPELINES["scrapy_deferkit.ParallelPipeline"]',
    "the reviews' branch": "del DEFERKIT_PARALLEL[0]",
    "the offers' branch": "del DEFERKIT_PARALLEL[1]",
    "the elements' processors": 'del ITEM_PIPELINES["scrapy_deferkit.EachPipeline"]',
    "the reviews' processor": "del DEFERKIT_EACH[0]",
    "the offers' processor": "del DEFERKIT_EACH[1]",
    "the place": 'del ITEM_PIPELINES["bookshop.pipelines.PlacePipeline"]',
    "the route by kind": _PLACE,
    "the retries": _ASK_ONCE,
    "the tap": 'del ITEM_PIPELINES["scrapy_deferkit.StackPipeline"]',
    "the pipeline by hand": 'del ITEM_PIPELINES["bookshop.pipelines.LabelPipeline"]',
}
# What never answers makes a crawl take long, so it is left out where it decides nothing.
ANSWERING = 'BOOKSHOP_SITE_TROUBLES = {"never_answers": 0, "reviews_stuck": 0}\n'
NEEDS_SILENCE = {"the response chain"}
OUTAGE = """
BOOKSHOP_SITE_TROUBLES = {"never_answers": 0, "reviews_flaky": 0, "reviews_down": 1}
"""


@pytest.fixture(scope="module")
def crawls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Crawl]:
    """Run all the crawls of this module, two at a time."""

    def run(name: str, settings: str, *options: str) -> tuple[str, Crawl]:
        folder: Path = tmp_path_factory.mktemp("crawl")
        return name, crawl(folder, "-a", "books=40", *QUICK, *options, settings=settings)

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(run, name, "", *options) for name, options in RUNTIMES.items()]
        for name, change in WITHOUT.items():
            settings = change if name in NEEDS_SILENCE else ANSWERING + change
            running.append(pool.submit(run, name, settings))
        running.append(pool.submit(run, "an outage", OUTAGE, "-a", "books=100"))
        return dict(each.result() for each in running)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_stores_the_same_data(crawls: dict[str, Crawl], runtime: str) -> None:
    assert len(crawls[runtime].rows) > 30
    assert crawls[runtime].data() == crawls["asyncio"].data()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_log_tells_of_expected_troubles_only(crawls: dict[str, Crawl], runtime: str) -> None:
    assert troubles_in(crawls[runtime].log) == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_summary_says_what_became_of_every_book(crawls: dict[str, Crawl], runtime: str) -> None:
    rows, _, summary, _ = crawls[runtime]
    ended = {line[:18].strip(): line[18:].split() for line in summary.splitlines() if line}
    stored, dropped, failed = (
        int(ended[f"Books {how}"][0]) for how in ("stored", "dropped", "failed")
    )
    assert stored == len(rows)
    assert stored + dropped + failed == 40
    assert int(ended["with a fallback"][0]) == sum(bool(row["fallbacks"]) for row in rows) > 0
    assert "at Chain/require_upc: the page has no UPC" in summary
    assert "at page/require_product: no book in" in summary
    assert "books.db (SQLite, table books)" in summary


@pytest.mark.parametrize("taken_out", [name for name in WITHOUT if name != "nothing"])
def test_each_stack_has_a_part_in_the_data(crawls: dict[str, Crawl], taken_out: str) -> None:
    whole = "asyncio" if taken_out in NEEDS_SILENCE else "nothing"
    assert crawls[taken_out].data() != crawls[whole].data()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_asking_again_mends_what_can_be_mended(crawls: dict[str, Crawl], runtime: str) -> None:
    # Of 40 books, the reviews of 4 are busy every other time, those of 2 always, and those of 1
    # come only the second time, after the first was given up.
    assert re.search(
        r"Services asked again +9   given up \(2\), no answer in time \(1\)\n",
        crawls[runtime].summary,
    )
    # Those of 2 more are no JSON, and nobody asks for that again.
    assert without_reviews(crawls[runtime]) == 4


def test_without_retries_more_books_have_no_reviews(crawls: dict[str, Crawl]) -> None:
    assert without_reviews(crawls["the retries"]) == without_reviews(crawls["nothing"]) + 4


def without_reviews(crawl: Crawl) -> int:
    return sum("reviews: unavailable" in row["fallbacks"] for row in crawl.rows)


def test_a_service_that_is_down_is_left_alone_and_loses_no_book(crawls: dict[str, Crawl]) -> None:
    outage = crawls["an outage"]
    left_alone = re.search(r"not asked, since it is down \((\d+)\)", outage.summary)
    assert left_alone is not None
    assert int(left_alone[1]) > 10
    assert len(outage.rows) == 95  # as in any crawl of 100
    (opened,) = troubles_in(outage.log)
    assert "open for 10 s" in opened
    assert "circuit breaker for '127.0.0.1:" in opened


def test_e_books_are_downloads_and_other_books_stand_on_shelves(crawls: dict[str, Crawl]) -> None:
    def kinds(crawl: Crawl) -> set[str]:
        return {row["place"].partition(" ")[0] for row in crawl.rows}

    assert kinds(crawls["asyncio"]) == {"shelf", "download"}
    assert kinds(crawls["the route by kind"]) == {"shelf"}


def test_each_stored_price_is_in_the_history(crawls: dict[str, Crawl]) -> None:
    rows, history = crawls["asyncio"].data()
    assert history == [(row["upc"], row["price"]) for row in rows if row["price"] is not None]


def test_the_page_that_never_answers_is_had_at_the_second_try(crawls: dict[str, Crawl]) -> None:
    (silent,) = [r for r in crawls["asyncio"].rows if "page: second try" in r["fallbacks"]]
    assert silent["upc"] not in {row["upc"] for row in crawls["the response chain"].rows}
    assert "?" not in silent["url"]
