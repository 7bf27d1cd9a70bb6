"""The processors that ask a service, and so want the crawler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from scrapy.crawler import Crawler
from scrapy.http import Request, TextResponse

from .downloads import SERVICE, UNAVAILABLE
from .errors import ServiceBusy, ServiceFailed
from .items import Book, Offer, Review
from .processors import parse_pounds

if TYPE_CHECKING:
    from typing_extensions import Self


class _Service:
    """Asks through Scrapy's downloader, so that its middlewares and limits hold here as well.

    Only its retries do not: whether to ask again is for the stack to say.
    """

    service = ""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        """Build the processor."""
        return cls(crawler)

    async def ask(self, url: str) -> Any:
        """Give the JSON at *url*, or ``None`` where the service has nothing (404).

        Raises :exc:`ServiceBusy` where it is down, and :exc:`ServiceFailed` for any other answer.
        """
        assert self._crawler.engine is not None
        meta = {SERVICE: self.service, "dont_retry": True}
        address = self._crawler.spider.address_now(url)  # type: ignore[union-attr]  # it is ours
        request = Request(address, meta=meta, headers={"Accept": "application/json"})
        response = await self._crawler.engine.download_async(request)
        if response.status == 404:
            return None
        if UNAVAILABLE in response.flags or response.status >= 500:
            raise ServiceBusy(f"{self.service} is unavailable")
        if response.status != 200:
            raise ServiceFailed(f"{self.service} answered {response.status}")
        try:
            assert isinstance(response, TextResponse)
            return response.json()
        except (AssertionError, ValueError) as error:
            raise ServiceFailed(f"{self.service} answered with no JSON") from error


class FetchTax(_Service):
    """Fetch the tax that is due on the book, in per cent.

    Nothing can stand in for it: a book with the wrong tax on it must not be sold. While the
    register is down, such a book fails, to be replayed when it is up again.
    """

    service = "the tax register"

    async def __call__(self, book: Book) -> Book:
        if book.tax_url:
            found = await self.ask(book.tax_url)
            if found is None:
                raise ServiceFailed(f"nobody knows the tax on {book.upc}")
            book.tax_percent = found["percent"]
        return book


class FetchReviews(_Service):
    """Fetch what readers say, from the service that the page names."""

    service = "the review service"

    async def __call__(self, book: Book) -> Book:
        found = await self.ask(book.reviews_url) if book.reviews_url else None
        book.reviews_from = "none" if found is None else "service"
        book.reviews = [
            Review(reader=each["reader"], text=each["text"], stars=each["stars"])
            for each in found or ()
        ]
        return book


class FetchOffers(_Service):
    """Fetch what other sellers ask for the book."""

    service = "the offers"

    async def __call__(self, book: Book) -> Book:
        found = await self.ask(book.offers_url) if book.offers_url else None
        book.offers_from = "none" if found is None else "service"
        book.offers = [Offer(each["seller"], parse_pounds(each["price"])) for each in found or ()]
        return book


def reviews_host(book: Book) -> str:
    """Give the host that the book's reviews are asked of."""
    return urlsplit(book.reviews_url).netloc


def offers_host(book: Book) -> str:
    """Give the host that the book's offers are asked of."""
    return urlsplit(book.offers_url).netloc


class LookUpSeller(_Service):
    """Put the seller's name and city to an offer, asking for each seller once or so."""

    service = "the register of sellers"

    def __init__(self, crawler: Crawler) -> None:
        super().__init__(crawler)
        self._known: dict[str, dict[str, str]] = {}

    async def __call__(self, offer: Offer) -> Offer:
        if not offer.seller:  # our own
            return offer
        if offer.seller not in self._known:
            found = await self.ask(self._address(offer))
            if found is None:
                raise ServiceFailed(f"nobody knows the seller {offer.seller!r}")
            self._known[offer.seller] = found
        offer.name = self._known[offer.seller]["name"]
        offer.city = self._known[offer.seller]["city"]
        return offer

    def _address(self, offer: Offer) -> str:
        return urljoin(
            getattr(self._crawler.spider, "root", ""), f"api/sellers/{offer.seller}.json"
        )
