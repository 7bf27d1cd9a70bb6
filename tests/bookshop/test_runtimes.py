"""The crawl of the local site: the same on each runtime, and each stack has a part in it."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from bookshop.site import make_catalogue

from ..scale import IS_FULL, IS_LATEST
from .crawling import (
    ASYNCIO,
    NO_REACTOR,
    QUICK,
    ROOT,
    TWISTED,
    Crawl,
    crawl,
    replay,
    troubles_in,
)

pytestmark = pytest.mark.crawl

BOOKS = 40
RUNTIMES = {"asyncio": ASYNCIO, "twisted": TWISTED, "none": NO_REACTOR}
# Where a book fails, by the trouble that it is in.
FAILING = {
    "cut_short": "page/require_product",
    "no_upc": "Chain/require_upc",
    "tax_down": "Chain/FetchTax",
}

_PLACE = """
from bookshop import pipelines, stacks
class Place(pipelines.PlacePipeline):
    stack = stacks.shelf
ITEM_PIPELINES[Place] = ITEM_PIPELINES.pop("bookshop.pipelines.PlacePipeline")
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
    "the downloader middleware": "DOWNLOADER_MIDDLEWARES = {}",
    "the spider middleware": "SPIDER_MIDDLEWARES = {}",
    "the chain": 'del ITEM_PIPELINES["scrapy_deferkit.ChainPipeline"]',
    "the tax": 'DEFERKIT_CHAIN.remove("bookshop.services.FetchTax")',
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
if not (IS_LATEST or IS_FULL):  # what the stacks do is not for the version of Scrapy to decide
    WITHOUT = {name: WITHOUT[name] for name in ("nothing", "the route by kind", "the retries")}
# What never answers makes a crawl take long, so it is left out where it decides nothing.
ANSWERING = 'BOOKSHOP_SITE_TROUBLES = {"never_answers": 0, "reviews_stuck": 0}\n'
NEEDS_SILENCE = {"the response chain": "del DEFERKIT_RESPONSE_CHAIN"}
TAX_IS_UP = 'BOOKSHOP_SITE_TROUBLES = {"tax_down": 0}'
# Eight books at once, or all have asked before the first are given up.
OUTAGE = """
BOOKSHOP_SITE_TROUBLES = {"never_answers": 0, "reviews_flaky": 0, "reviews_down": 1}
DEFERKIT_CONCURRENT_ITEMS = 8
"""


@pytest.fixture(scope="module")
def crawls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Crawl]:
    """Run all the crawls of this module, and replay those of the runtimes."""
    crawls: dict[str, Crawl] = {}
    folders = tmp_path_factory.mktemp("crawls")  # here: threads would make pytest's own folder anew
    books = ("-a", f"books={BOOKS}")

    def run(name: str, settings: str, *options: str) -> None:
        folder = folders / name
        folder.mkdir()
        crawls[name] = crawl(folder, *books, *options, settings=QUICK + settings)
        if name in RUNTIMES:
            crawls[f"{name}, replayed"] = replay(folder, *books, *options, code=1)

    changed = {**NEEDS_SILENCE, "the tax is up": TAX_IS_UP, "an outage": OUTAGE}
    changed |= {name: ANSWERING + settings for name, settings in WITHOUT.items()}
    with ThreadPoolExecutor(3) as pool:  # most of them wait, most of the time
        running = [pool.submit(run, name, "", *options) for name, options in RUNTIMES.items()]
        running += [pool.submit(run, *each) for each in changed.items()]
    for each in running:
        each.result()
    return crawls


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_stores_the_same_data(crawls: dict[str, Crawl], runtime: str) -> None:
    assert len(crawls[runtime].rows) > 30
    assert crawls[runtime].data() == crawls["asyncio"].data()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_log_tells_of_expected_troubles_only(crawls: dict[str, Crawl], runtime: str) -> None:
    assert troubles_in(crawls[runtime].log) == []
    *log, _ = crawls[f"{runtime}, replayed"].log.splitlines()
    assert troubles_in("\n".join(log)) == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_summary_says_what_became_of_every_book(crawls: dict[str, Crawl], runtime: str) -> None:
    rows, summary = crawls[runtime].rows, crawls[runtime].summary
    ended = {line[:18].strip(): line[18:].split() for line in summary.splitlines() if line}
    stored, dropped, failed = (
        int(ended[f"Books {how}"][0]) for how in ("stored", "dropped", "failed")
    )
    assert stored == len(rows)
    assert stored + dropped + failed == BOOKS
    assert int(ended["with a fallback"][0]) == sum(bool(row["fallbacks"]) for row in rows) > 0
    assert "at Chain/require_upc: the page has no UPC" in summary
    assert "at page/require_product: the page ends before the book begins" in summary
    assert "at Chain/FetchTax: the tax register is unavailable" in summary
    assert "books.db (SQLite, table books)" in summary
    assert int(ended["Dead letters kept"][0]) == failed
    assert "\n    scrapy deferkit replay books -a db=/" in summary


def test_the_readme_shows_the_report_that_the_crawl_prints(crawls: dict[str, Crawl]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```text\n(Items of books: .*?)^```", readme, re.MULTILINE | re.DOTALL)
    printed = crawls["asyncio"].summary.partition("\n\nBooks stored")[0]
    assert max(map(len, printed.splitlines())) <= 100
    wanted, found = outline(shown), iter(outline(printed))
    assert len(wanted) > 10
    assert [line for line in wanted if line not in found] == []  # in this order


def outline(report: str) -> list[str]:
    """Give the lines of *report* without what differs from one crawl to another."""
    lines = [re.sub(r"127\S+|\d+( [µm]?s\b|%|\b)|-+", "", line) for line in report.splitlines()]
    return [re.split(r"(?<=\S)  ", line)[0].rstrip(" .") for line in lines if line.strip(" .")]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_book_that_fails_is_kept_with_its_step_and_its_page(
    crawls: dict[str, Crawl], runtime: str
) -> None:
    kept = [(each.step, urlsplit(each.page_url).path) for each in crawls[runtime].letters]
    assert sorted(kept) == sorted(
        (FAILING[trouble], f"/catalogue/{volume.folder}/index.html")
        for volume in make_catalogue(BOOKS).volumes
        for trouble in volume.troubles & FAILING.keys()
    )


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_replay_stores_the_books_that_an_outage_held_up(
    crawls: dict[str, Crawl], runtime: str
) -> None:
    replayed = crawls[f"{runtime}, replayed"]
    assert len(replayed.rows) > len(crawls[runtime].rows)
    assert replayed.data() == crawls["the tax is up"].data()
    assert replayed.log.splitlines()[-1] == "2 delivered, 0 dropped, 2 failed again"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_replay_leaves_the_books_whose_pages_lack_something(
    crawls: dict[str, Crawl], runtime: str
) -> None:
    assert {each.attempts for each in crawls[runtime].letters} == {1}
    assert {(each.id, each.attempts) for each in crawls[f"{runtime}, replayed"].letters} == {
        (each.id, 2) for each in crawls[runtime].letters if each.step != FAILING["tax_down"]
    }


@pytest.mark.parametrize("taken_out", [*NEEDS_SILENCE, *list(WITHOUT)[1:]])
def test_each_stack_has_a_part_in_the_data(crawls: dict[str, Crawl], taken_out: str) -> None:
    whole = "asyncio" if taken_out in NEEDS_SILENCE else "nothing"
    assert len(crawls[taken_out].rows) > 30
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
    assert int(left_alone[1]) > 0
    assert [row["upc"] for row in outage.rows] == [row["upc"] for row in crawls["nothing"].rows]
    opened, *again = troubles_in(outage.log)
    assert "circuit breaker for '127.0.0.1:" in opened
    assert all("open for 10 s" in line for line in (opened, *again))


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
