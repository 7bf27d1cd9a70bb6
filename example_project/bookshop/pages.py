"""The processors of spider output, which get the page's response as well."""

from __future__ import annotations

from scrapy.exceptions import DropItem
from scrapy.http import TextResponse

from .errors import IncompletePage
from .items import Book


def require_product(book: Book, response: TextResponse) -> Book:
    """Refuse a page that ends before the book begins, though the server said 200.

    No replay mends that: a dead letter has the book, not the page.
    """
    if not book.title:
        raise IncompletePage("the page ends before the book begins")
    return book


def drop_withdrawn(book: Book, response: TextResponse) -> Book:
    """Drop a book whose page says that it is no longer for sale."""
    notice = response.css(".alert-danger::text").get("")
    if "withdrawn" in notice.lower():
        raise DropItem("withdrawn from sale")
    return book


def resolve_links(book: Book, response: TextResponse) -> Book:
    """Make whole addresses of the links, which the page has relative to itself."""
    book.image_url = book.image_url and response.urljoin(book.image_url)
    book.reviews_url = book.reviews_url and response.urljoin(book.reviews_url)
    book.offers_url = book.offers_url and response.urljoin(book.offers_url)
    book.tax_url = book.tax_url and response.urljoin(book.tax_url)
    return book
