"""The crawl of the copy of the real site, against a parse by another library."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from bs4 import BeautifulSoup, Tag

from ..scale import tenth_of, with_the_latest
from .crawling import ROOT, Crawl, crawl, troubles_in

pytestmark = [pytest.mark.crawl, with_the_latest]

ARCHIVE = ROOT.parent / "shared" / "data" / "books.toscrape.com.tar.xz"
if not ARCHIVE.exists():
    pytest.skip("the copy of books.toscrape.com is not here", allow_module_level=True)


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files, and keeps no log."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the copy."""
    folder = tmp_path_factory.mktemp("real_site")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[str]:
    """Serve the copy, below a path."""
    server = Server(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/fixtures/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def crawled(site: str, tmp_path_factory: pytest.TempPathFactory) -> Crawl:
    """Crawl the copy."""
    return crawl(tmp_path_factory.mktemp("crawl"), "-a", f"site={site}")


@pytest.fixture(scope="module")
def files(folder: Path, site: str) -> dict[str, Path]:
    """Find the books' pages among the files of the copy, by URL."""
    root = folder / "fixtures"
    return {
        site + file.relative_to(root).as_posix(): file
        for file in sorted(root.glob("catalogue/*/index.html"))
        if "category" not in file.parts
    }


def parse(file: Path) -> dict[str, Any]:
    """Parse a book's page."""
    # What follows the article is other books, and as much again to parse.
    text = file.read_text(encoding="utf-8").partition("</article>")[0]
    page = BeautifulSoup(text, "html.parser")
    main = find(page, "div", class_="product_main")
    cells = {
        find(row, "th").get_text(): find(row, "td").get_text()
        for row in find(page, "table", class_="table-striped").find_all("tr")
    }
    heading = page.find(id="product_description")
    description = None if heading is None else heading.find_next_sibling("p")
    available = re.search(r"\((\d+) available\)", cells["Availability"])
    assert available is not None
    stars = find(main, "p", class_="star-rating")["class"]
    return {
        "title": find(main, "h1").get_text(),
        "price": Decimal(cells["Price (incl. tax)"].removeprefix("£")),
        "currency": "GBP",
        "rating": ["One", "Two", "Three", "Four", "Five"].index(stars[-1]) + 1,
        "stock": int(available[1]),
        "upc": cells["UPC"],
        "category": find(page, "ul", class_="breadcrumb").find_all("li")[2].get_text().strip(),
        "description": None if description is None else description.get_text(),
    }


def find(tag: Tag, name: str, **attributes: Any) -> Tag:
    """Find the one *tag* that must be there."""
    found = tag.find(name, **attributes)
    assert isinstance(found, Tag)
    return found


def test_every_book_is_stored_as_its_page_has_it(crawled: Crawl, files: dict[str, Path]) -> None:
    found = {row["url"]: {**row, "price": Decimal(row["price"])} for row in crawled.rows}
    assert len(crawled.rows) == len(files) == 1000
    assert found.keys() == files.keys()
    expected = {url: parse(files[url]) for url in list(files)[: tenth_of(1000)]}
    assert {url: {name: found[url][name] for name in book} for url, book in expected.items()} == (
        expected
    )


def test_some_pages_have_no_description(crawled: Crawl) -> None:
    assert sum(row["description"] is None for row in crawled.rows) == 2


def test_a_site_without_services_needs_no_fallback(crawled: Crawl) -> None:
    assert {(row["reviews"], row["offers"], row["fallbacks"]) for row in crawled.rows} == {
        ("[]", "[]", "")
    }


def test_the_log_tells_of_the_dead_link_only(crawled: Crawl) -> None:
    assert troubles_in(crawled.log) == []
    assert [line.rpartition(": ")[2] for line in crawled.log.splitlines()] == ["it answers 404"]
    assert re.search(r"Books stored +1000\n", crawled.summary)
    assert re.search(r"Pages not to be had +1\n", crawled.summary)
    assert "dead letters" not in crawled.summary.lower()
