"""The spider: from the catalogue to each book's page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from scrapy import Request, Spider
from scrapy.crawler import Crawler
from scrapy.http import Response
from scrapy.spidermiddlewares.httperror import HttpError
from twisted.python.failure import Failure

from bookshop.downloads import FRESH
from bookshop.items import Book, Ebook
from bookshop.site import Site, serve

if TYPE_CHECKING:
    from typing_extensions import Self


class BooksSpider(Spider):
    """Crawl a copy of books.toscrape.com, or a local site with the same pages.

    Arguments: ``site`` (the URL of a copy; without it the local site is started), ``books`` and
    ``seed`` (of the local site), ``db`` (the SQLite file).

    A replay of dead letters starts the local site as well, as it is on the morning after: its tax
    register is up again, unless ``BOOKSHOP_SITE_TROUBLES`` says otherwise. What a page lacked is
    still lacking, until somebody has put it into the letter. A replay wants the arguments that the
    crawl had: another ``seed`` is a site with other books.
    """

    name = "books"

    def __init__(
        self,
        site: str | None = None,
        books: str | int = 100,
        seed: str | int = 1,
        db: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # As they were given: so a dead letter has them, to be shown with it.
        self.site = site
        self.books = books
        self.seed = seed
        self.db = db
        self.lost_pages = 0
        self.arguments: dict[str, str] = {}
        self._local_site: Site | None = None

    @classmethod
    def from_crawler(cls, crawler: Crawler, *args: Any, **kwargs: Any) -> Self:
        """Build the spider, and start the local site where no other was given.

        Not in :meth:`start`, which a replay does not run.
        """
        spider = super().from_crawler(crawler, *args, **kwargs)
        spider.arguments = kwargs
        if not spider.site:
            settings = crawler.settings
            is_replay = settings.get("DEFERKIT_REPLAY") is not None
            over = {"tax_down": 0.0} if is_replay else {}
            spider._local_site = serve(
                _number("books", spider.books),
                _number("seed", spider.seed),
                delay=settings.getfloat("BOOKSHOP_SITE_DELAY", 0.3),
                troubles={**over, **settings.getdict("BOOKSHOP_SITE_TROUBLES")},
            )
        return spider

    @property
    def root(self) -> str:
        """The URL of the site's front page."""
        return self.site or (self._local_site.url if self._local_site else "")

    def address_now(self, url: str) -> str:
        """Give *url* at the port that the local site has now.

        A book that comes back from the dead letters has the addresses of its own crawl.
        """
        return url if self.site else urljoin(self.root, urlsplit(url).path)

    async def start(self) -> AsyncIterator[Request]:
        """Ask for the front page."""
        yield Request(self.root, self.parse_front_page, errback=self.lose_page)

    def closed(self, reason: str) -> None:
        """Close the local site."""
        if self._local_site is not None:
            self._local_site.close()

    def parse_front_page(self, response: Response) -> Iterator[Request]:
        """Follow the categories of the front page.

        A mirror has links that lead nowhere, so each book is looked for on two ways: through the
        whole catalogue and through its category.
        """
        for link in response.css(".side_categories ul ul a::attr(href)").getall():
            yield response.follow(link, self.parse_listing, errback=self.lose_page)
        yield from self.parse_listing(response)

    def parse_listing(self, response: Response) -> Iterator[Request]:
        """Follow the books of a page, and the page after it."""
        for link in response.css("article.product_pod h3 a::attr(href)").getall():
            yield response.follow(link, self.parse_book, errback=self.lose_page)
        for link in response.css("ul.pager li.next a::attr(href)").getall():
            yield response.follow(link, self.parse_listing, errback=self.lose_page)

    def parse_book(self, response: Response) -> Iterator[Book]:
        """Take a book off its page, in the page's words."""
        main = response.css(".product_main")
        table = {
            row.css("th::text").get(""): row.css("td::text").get("")
            for row in response.css("table.table-striped tr")
        }
        description = response.css("#product_description + p")
        rating = main.css(".star-rating").attrib.get("class", "")
        book = Book(
            url=response.url,
            title=main.css("h1::text").get(""),
            upc=table.get("UPC"),
            category=response.css(".breadcrumb li:nth-child(3) a::text").get("").strip(),
            description=description.css("::text").get() if description else None,
            image_url=response.css("#product_gallery img").attrib.get("src", ""),
            page_from="second try" if response.meta.get("second_try") else "page",
            price_text=main.css(".price_color::text").get(""),
            table_price_text=table.get("Price (excl. tax)", ""),
            rating_text=rating.removeprefix("star-rating").strip(),
            stock_text=" ".join(main.css(".availability::text").getall()).strip(),
            reviews_url=response.css("#reviews").attrib.get("data-source", ""),
            offers_url=response.css("#offers").attrib.get("data-source", ""),
            tax_url=response.css("#tax").attrib.get("data-source", ""),
        )
        if table.get("Product Type") == "E-books":
            book = Ebook(**vars(book), file_text=table.get("File", ""))
        yield book

    def lose_page(self, failure: Failure) -> None:
        """Note a page that is not to be had."""
        self.lost_pages += 1
        error = failure.value
        if isinstance(error, HttpError):
            why = f"it answers {error.response.status}"
        else:
            why = f"{type(error).__name__}: {error}"
        url = failure.request.url.removesuffix(FRESH)  # type: ignore[attr-defined]  # Scrapy puts it there
        self.logger.warning("Cannot have %s: %s", url, why)


def _number(name: str, value: str | int) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise ValueError(f"-a {name}={value}: {name} is a whole number") from error
