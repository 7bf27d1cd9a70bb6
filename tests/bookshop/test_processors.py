"""The processors, as the plain functions they are, and the stacks that are made of them."""

from __future__ import annotations

import doctest
import importlib
import json
from decimal import Decimal
from pathlib import Path

import pytest
from scrapy.exceptions import DropItem, IgnoreRequest
from scrapy.http import HtmlResponse, Request, Response, TextResponse
from twisted.python.failure import Failure

from bookshop import labels, pages, processors, stacks
from bookshop.downloads import SERVICE, forget_second_try, refuse_outage, try_otherwise
from bookshop.errors import IncompletePage, ServiceBusy, ServiceFailed, UnreadableText
from bookshop.items import Book, Ebook, Offer, Review
from bookshop.pipelines import LabelPipeline
from bookshop.services import FetchTax
from scrapy_deferkit.testing import mock_crawler, run_stack


@pytest.fixture
def book() -> Book:
    return Book("http://shop.example/1", title="The Quiet Ferry", upc="1")


@pytest.mark.no_runtime
@pytest.mark.parametrize("module", ["items", "processors", "site.words"])
def test_the_examples_in_docstrings_hold(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"bookshop.{module}"))
    assert tried
    assert not failed


@pytest.mark.no_runtime
def test_a_book_needs_a_upc() -> None:
    with pytest.raises(IncompletePage):
        processors.require_upc(Book("http://shop.example/1"))


@pytest.mark.no_runtime
def test_a_title_has_single_spaces() -> None:
    book = processors.tidy_title(Book("", title="\n The  Quiet\n Ferry "))
    assert book.title == "The Quiet Ferry"


@pytest.mark.no_runtime
@pytest.mark.parametrize(("text", "kept"), [(" \n ", None), (None, None), (" A. ", "A.")])
def test_a_description_says_something_or_is_none(text: str | None, kept: str | None) -> None:
    assert processors.tidy_description(Book("", description=text)).description == kept


@pytest.mark.no_runtime
@pytest.mark.parametrize("text", ["", "£", "£--.--", "ask", "£1.5", "$5.00", "£ n/a", "£1,200.00"])
def test_what_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(UnreadableText):
        processors.parse_pounds(text)


@pytest.mark.parametrize(
    ("beside", "below", "price", "source"),
    [
        ("£5.00", "£6.00", Decimal("5.00"), "page"),
        ("ask", "£6.00", Decimal("6.00"), "table"),
        ("ask", "n/a", None, "unknown"),
        ("£0.00", "£6.00", None, "unknown"),
    ],
)
async def test_a_price_comes_from_where_it_can(
    beside: str, below: str, price: Decimal | None, source: str
) -> None:
    from bookshop.settings import DEFERKIT_TOLERANT
    from scrapy_deferkit import Tolerant

    book = Book("", price_text=beside, table_price_text=below)
    run = await run_stack(Tolerant(*DEFERKIT_TOLERANT), [book])
    assert [(book.price, book.price_from) for book in run.scraped] == [(price, source)]


@pytest.mark.no_runtime
def test_stars_are_counted_in_words() -> None:
    assert processors.read_rating(Book("", rating_text="Four")).rating == 4
    with pytest.raises(UnreadableText):
        processors.read_rating(Book("", rating_text="Six"))


@pytest.mark.no_runtime
def test_stock_is_the_number_in_parentheses() -> None:
    assert processors.read_stock(Book("", stock_text="In stock (22 available)")).stock == 22
    with pytest.raises(UnreadableText):
        processors.read_stock(Book("", stock_text="In stock"))


@pytest.mark.no_runtime
def test_advertising_is_no_review() -> None:
    with pytest.raises(DropItem):
        processors.check_review(Review("x", "see http://x.invalid", 5))
    with pytest.raises(UnreadableText):
        processors.check_review(Review("x", "fine", 6))


async def test_a_book_whose_tax_is_not_known_is_not_sold(book: Book) -> None:
    class NobodyKnows(FetchTax):
        async def ask(self, url: str) -> None:
            return None

    fetch = NobodyKnows(mock_crawler())
    assert (await fetch(book)).tax_percent is None  # a site without a register
    book.tax_url = "http://shop.example/api/tax/1.json"
    with pytest.raises(ServiceFailed, match="nobody knows the tax on 1"):
        await fetch(book)


@pytest.mark.no_runtime
def test_our_own_offer_wants_a_price(book: Book) -> None:
    failure = Failure(ServiceFailed("down"))
    assert processors.our_own_offer(failure, book).offers == []
    book.price = Decimal("9.00")
    assert processors.our_own_offer(failure, book).offers == [
        Offer("", Decimal("9.00"), "this shop")
    ]


async def test_the_shelf_is_found_without_price_and_description(book: Book) -> None:
    book.category = "Travel"
    run = await run_stack(stacks.place, [book])
    (shelved,) = run.scraped
    assert (shelved.sort_title, shelved.price_band) == ("quiet ferry, the", "ask")
    assert shelved.place == "shelf Travel, Q"
    assert shelved.reading_minutes is None


async def test_an_e_book_stands_on_no_shelf() -> None:
    run = await run_stack(stacks.place, [Ebook("", file_text="EPUB, 2.4 MB"), Ebook("")])
    assert [(book.place, book.price_band) for book in run.scraped] == [
        ("download (EPUB, 2.4 MB)", "")
    ]
    assert [failed.step for failed in run.failed] == ["place/download/read_file"]


async def test_the_history_of_prices_grows_and_has_no_line_without_a_price(tmp_path: Path) -> None:
    books = [Book("", upc="1", price=Decimal("5.00")), Book("", upc="2")]
    for _ in range(2):
        crawler = mock_crawler({"BOOKSHOP_DB": str(tmp_path / "shop.db")})
        run = await run_stack(stacks.price_history, books, crawler=crawler)
        assert run.scraped == books
    lines = (tmp_path / "shop.prices.jsonl").read_text(encoding="utf-8").splitlines()
    assert [(line["upc"], line["price"]) for line in map(json.loads, lines)] == [("1", "5.00")] * 2


async def test_a_history_that_cannot_be_written_loses_no_book(tmp_path: Path) -> None:
    crawler = mock_crawler({"BOOKSHOP_DB": str(tmp_path / "gone" / "shop.db")})
    book = Book("", upc="1", price=Decimal("5.00"))
    run = await run_stack(stacks.price_history, [book], crawler=crawler)
    assert run.scraped == [book]
    assert crawler.stats.get_value("deferkit/price_history/tap_failed") == 1


async def test_a_page_is_dropped_failed_or_passed_with_whole_links() -> None:
    def response(body: str) -> HtmlResponse:
        return HtmlResponse("http://shop.example/a/b.html", body=body.encode(), encoding="utf-8")

    whole = Book("", title="A", image_url="../i.jpg")
    run = await run_stack(stacks.page, [whole, Book("")], response(""))
    assert [book.image_url for book in run.scraped] == ["http://shop.example/i.jpg"]
    assert [failed.step for failed in run.failed] == ["page/require_product"]
    withdrawn = response('<div class="alert alert-danger">Withdrawn from sale</div>')
    with pytest.raises(DropItem):
        pages.drop_withdrawn(whole, withdrawn)


@pytest.mark.no_runtime
def test_an_outage_of_a_service_is_a_failure() -> None:
    service = Request("http://shop.example/api", meta={SERVICE: "reviews"})
    with pytest.raises(ServiceBusy):
        refuse_outage(Response(service.url, status=503), service)
    page = Request("http://shop.example/")
    assert refuse_outage(Response(page.url, status=503), page).status == 503


@pytest.mark.no_runtime
def test_a_page_that_does_not_come_is_asked_for_once_more() -> None:
    page = Request("http://shop.example/1", callback=print, meta={"retry_times": 1, "depth": 2})
    again = try_otherwise(Failure(OSError()), page)
    assert isinstance(again, Request)
    assert again.url == "http://shop.example/1?fresh=1"
    assert again.meta == {"depth": 2, "second_try": True}
    response = forget_second_try(Response(again.url, request=again), again)
    assert isinstance(response, Response)
    assert response.url == page.url
    assert isinstance(try_otherwise(Failure(OSError()), again), Failure)


@pytest.mark.no_runtime
def test_a_request_that_was_refused_is_not_asked_again() -> None:
    failure = Failure(IgnoreRequest())
    assert try_otherwise(failure, Request("http://shop.example/1", callback=print)) is failure


@pytest.mark.no_runtime
def test_a_service_is_done_without() -> None:
    service = Request("http://shop.example/api", meta={SERVICE: "reviews"})
    stand_in = try_otherwise(Failure(OSError()), service)
    assert isinstance(stand_in, TextResponse)
    assert stand_in.flags == ["unavailable"]


async def test_the_label_is_made_with_the_four_helpers(book: Book) -> None:
    book.price = Decimal("12.50")
    book.reviews = [Review("a", "Splendid ferry", 4), Review("b", "splendid", None)]
    book.offers = [Offer("x", Decimal("10.00"), "X Books"), Offer("y", Decimal("13.00"), "Y")]
    labelled = await LabelPipeline().process_item(book)
    assert labelled.label == (
        "The Quiet Ferry | £12.50 | 4.0 of 5 | £10.00 at X Books | splendid, ferry"
    )


async def test_a_label_without_a_price_says_whom_to_ask(book: Book) -> None:
    labelled = await LabelPipeline().process_item(book)
    assert labelled.label == "The Quiet Ferry | ask at the desk | not reviewed"


@pytest.mark.no_runtime
def test_a_long_label_is_cut() -> None:
    assert len(labels.shorten("x" * 200)) == 100
