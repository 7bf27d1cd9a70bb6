"""The processors of items, as plain functions."""

from __future__ import annotations

import re
from decimal import Decimal

from scrapy.exceptions import DropItem
from twisted.python.failure import Failure

from .errors import IncompletePage, UnreadableText
from .items import UNKNOWN_SELLER, Book, Ebook, Offer, Review

_STARS = {"One": 1, "Two": 2, "Three": 3, "Four": 4, "Five": 5}
_WORDS_PER_MINUTE = 200

# ----------------------------------------------------------------------------- one after the other


def require_upc(book: Book) -> Book:
    """Refuse a book without a UPC, the key it is stored under."""
    if not book.upc:
        raise IncompletePage("the page has no UPC")
    return book


def tidy_title(book: Book) -> Book:
    """Make one space of each run of spaces and line breaks in the title."""
    book.title = re.sub(r"[ \t\r\n]+", " ", book.title).strip()
    return book


def tidy_description(book: Book) -> Book:
    """Make ``None`` of a description that says nothing."""
    book.description = (book.description or "").strip() or None
    return book


# ---------------------------------------------------------------------------- with an errback each


def parse_pounds(text: str) -> Decimal:
    """Give the amount in a text such as ``£51.77``.

    >>> parse_pounds("£51.77")
    Decimal('51.77')

    Raises :exc:`UnreadableText` for anything else.
    """
    match = re.fullmatch(r"\s*£\s*(\d+(?:\.\d\d)?)\s*", text, re.ASCII)
    if match is None:
        raise UnreadableText(f"{text!r} is no price in pounds")
    return Decimal(match[1])


def read_price(book: Book) -> Book:
    """Read the price that stands beside the title."""
    book.price, book.price_from = parse_pounds(book.price_text), "page"
    return book


def price_from_table(failure: Failure, book: Book) -> Book:
    """Read the price in the product table instead."""
    book.price, book.price_from = parse_pounds(book.table_price_text), "table"
    return book


def check_price(book: Book) -> Book:
    """Refuse a price of nothing."""
    if not book.price:
        raise UnreadableText(f"a price of {book.price}")
    return book


def leave_unpriced(failure: Failure, book: Book) -> Book:
    """Go on without a price: neither place had one that makes sense."""
    book.price, book.price_from = None, "unknown"
    return book


def read_rating(book: Book) -> Book:
    """Read the stars, which are a word."""
    if book.rating_text not in _STARS:
        raise UnreadableText(f"{book.rating_text!r} is no number of stars")
    book.rating, book.rating_from = _STARS[book.rating_text], "page"
    return book


def leave_unrated(failure: Failure, book: Book) -> Book:
    """Go on with no stars."""
    book.rating, book.rating_from = 0, "unknown"
    return book


def read_stock(book: Book) -> Book:
    """Read how many are in stock."""
    match = re.search(r"\((\d+) available\)", book.stock_text)
    if match is None:
        raise UnreadableText(f"{book.stock_text!r} is no stock")
    book.stock, book.stock_from = int(match[1]), "page"
    return book


def call_it_sold_out(failure: Failure, book: Book) -> Book:
    """Go on with none in stock: promise nothing that is not there."""
    book.stock, book.stock_from = 0, "unknown"
    return book


# -------------------------------------------------------------------------------------- in parallel


def without_reviews(failure: Failure, book: Book) -> Book:
    """Go on without reviews when the service fails."""
    book.reviews, book.reviews_from = [], "unavailable"
    return book


def our_own_offer(failure: Failure, book: Book) -> Book:
    """Let our own price stand in for the offers when that service fails."""
    own = [] if book.price is None else [Offer("", book.price, name="this shop")]
    book.offers, book.offers_from = own, "our own"
    return book


# -------------------------------------------------------------------------------------- per element


def check_review(review: Review) -> Review:
    """Drop advertising; refuse stars that are none."""
    if "http://" in review.text or "https://" in review.text:
        raise DropItem("advertising")
    if not isinstance(review.stars, int) or not 1 <= review.stars <= 5:
        raise UnreadableText(f"{review.stars!r} is no number of stars")
    return review


def keep_the_words(failure: Failure, review: Review) -> Review:
    """Keep what the reader says, without the stars."""
    review.stars = None
    return review


def name_unknown_seller(failure: Failure, offer: Offer) -> Offer:
    """Keep the offer of a seller whom nobody knows."""
    offer.name = UNKNOWN_SELLER
    return offer


# ------------------------------------------------------------------------------------ for the place


def file_under(book: Book) -> Book:
    """Note the title to sort by: without the article.

    >>> file_under(Book("", title="The Quiet Ferry")).sort_title
    'quiet ferry, the'
    """
    article, _, rest = book.title.lower().partition(" ")
    book.sort_title = f"{rest}, {article}" if article in {"the", "a", "an"} else book.title.lower()
    return book


def band_price(book: Book) -> Book:
    """Note which shelf the price belongs on."""
    if book.price is None:
        book.price_band = "ask"
    else:
        book.price_band = "low" if book.price < 20 else "middle" if book.price < 40 else "high"
    return book


def choose_shelf(book: Book) -> Book:
    """Put the book on the shelf of its category, with those that begin with the same letter."""
    book.place = f"shelf {book.category}, {book.sort_title[:1].upper()}"
    return book


def read_file(book: Ebook) -> Ebook:
    """Note what an e-book is to be downloaded as.

    >>> read_file(Ebook("", file_text=" EPUB, 2.4 MB ")).place
    'download (EPUB, 2.4 MB)'
    """
    match = re.fullmatch(r"\s*([A-Z]+), (\d+(?:\.\d)?) MB\s*", book.file_text, re.ASCII)
    if match is None:
        raise UnreadableText(f"{book.file_text!r} is no file to download")
    book.place = f"download ({match[1]}, {match[2]} MB)"
    return book


async def time_reading(book: Book) -> Book:
    """Note how long the description takes to read, in minutes."""
    if book.description is None:
        raise IncompletePage("there is no description to read")
    book.reading_minutes = -(-len(book.description.split()) // _WORDS_PER_MINUTE)
    return book


def nothing_to_read(failure: Failure, book: Book) -> Book:
    """Leave the time open where there is no description."""
    book.reading_minutes = None
    return book
