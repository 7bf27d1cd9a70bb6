"""The crawl of the local site: the same on each runtime, and each stack has a part in it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .crawling import ASYNCIO, NO_REACTOR, QUICK, TWISTED, Crawl, crawl, troubles_in

pytestmark = pytest.mark.crawl

RUNTIMES = {"asyncio": ASYNCIO, "twisted": TWISTED, "none": NO_REACTOR}

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
    "the shelf": 'del ITEM_PIPELINES["bookshop.pipelines.ShelfPipeline"]',
    "the pipeline by hand": 'del ITEM_PIPELINES["bookshop.pipelines.LabelPipeline"]',
}
# A page that never answers makes a crawl take long, so it is left out where it decides nothing.
ANSWERING = 'BOOKSHOP_SITE_TROUBLES = {"never_answers": 0}\n'
NEEDS_SILENCE = {"the response chain"}


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
        return dict(each.result() for each in running)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_stores_the_same_rows(crawls: dict[str, Crawl], runtime: str) -> None:
    assert len(crawls[runtime].rows) > 30
    assert crawls[runtime].rows_wherever() == crawls["asyncio"].rows_wherever()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_log_tells_of_expected_troubles_only(crawls: dict[str, Crawl], runtime: str) -> None:
    assert troubles_in(crawls[runtime].log) == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_summary_says_what_became_of_every_book(crawls: dict[str, Crawl], runtime: str) -> None:
    rows, summary, _ = crawls[runtime]
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
def test_each_stack_has_a_part_in_the_rows(crawls: dict[str, Crawl], taken_out: str) -> None:
    whole = "asyncio" if taken_out in NEEDS_SILENCE else "nothing"
    assert crawls[taken_out].rows_wherever() != crawls[whole].rows_wherever()


def test_the_page_that_never_answers_is_had_at_the_second_try(crawls: dict[str, Crawl]) -> None:
    (silent,) = [r for r in crawls["asyncio"].rows if "page: second try" in r["fallbacks"]]
    assert silent["upc"] not in {row["upc"] for row in crawls["the response chain"].rows}
    assert "?" not in silent["url"]
