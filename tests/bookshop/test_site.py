"""The local site: the same from the same seed, and never without its troubles."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest

from bookshop.site import DEFAULT_TROUBLES, Site, Volume, make_catalogue, serve
from bookshop.site.pages import make_pages

from .crawling import PROJECT

pytestmark = pytest.mark.no_runtime


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with serve(60, seed=3, delay=0, port=0) as site:
        yield site


def get(site: Site, path: str, **headers: str) -> tuple[int, bytes]:
    address = urlsplit(site.url)
    connection = HTTPConnection(str(address.hostname), address.port, timeout=10)
    try:
        connection.request("GET", f"/{path}", headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def reviews_of(site: Site, trouble: str) -> tuple[int, bytes]:
    path = f"api/reviews/{volume_in(site, trouble).upc}.json"
    return get(site, path, **{"X-Reader-Card": "bookshop"})


def volume_in(site: Site, trouble: str) -> Volume:
    return next(volume for volume in site.catalogue.volumes if trouble in volume.troubles)


def test_the_same_seed_makes_the_same_pages() -> None:
    assert make_pages(make_catalogue(50, seed=7)) == make_pages(make_catalogue(50, seed=7))
    assert make_catalogue(50, seed=7) == make_catalogue(50, seed=7)


def test_another_seed_makes_other_books() -> None:
    assert make_catalogue(50, seed=7) != make_catalogue(50, seed=8)


@pytest.mark.parametrize("books", [30, 100])
def test_every_trouble_is_there(books: int) -> None:
    volumes = make_catalogue(books).volumes
    assert {name for volume in volumes for name in volume.troubles} == set(DEFAULT_TROUBLES)


def test_a_trouble_is_as_frequent_as_it_is_told_to_be() -> None:
    volumes = make_catalogue(100, troubles={"price_text": 0.3, "no_upc": 0}).volumes
    assert sum("price_text" in volume.troubles for volume in volumes) == 30
    assert not any("no_upc" in volume.troubles for volume in volumes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"books": 0}, "a site has 1 book or more"),
        ({"troubles": {"fire": 0.1}}, "unknown trouble 'fire'; known are withdrawn, "),
        ({"troubles": {"no_upc": 2}}, "from 0 to 1"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_catalogue(**arguments)


def test_every_book_has_a_page_of_its_own_and_a_upc(site: Site) -> None:
    volumes = site.catalogue.volumes
    assert len({volume.folder for volume in volumes}) == len(volumes) == 60
    assert len({volume.upc for volume in volumes}) == 60
    answering = [volume for volume in volumes if "never_answers" not in volume.troubles]
    pages = [get(site, f"catalogue/{volume.folder}/index.html") for volume in answering]
    assert {status for status, _ in pages} == {200}


def test_the_services_want_to_see_a_card(site: Site) -> None:
    status, _ = get(site, f"api/reviews/{site.catalogue.volumes[0].upc}.json")
    assert status == 401


def test_a_flaky_service_answers_503_every_other_time(site: Site) -> None:
    assert [reviews_of(site, "reviews_flaky")[0] for _ in range(4)] == [503, 200, 503, 200]


def test_a_stuck_service_answers_every_other_time() -> None:
    site = serve(20, delay=0, port=0)
    address = urlsplit(site.url)
    server = (str(address.hostname), int(address.port or 0))
    path = f"/api/reviews/{volume_in(site, 'reviews_stuck').upc}.json"
    with socket.create_connection(server, 10) as one, socket.create_connection(server, 10) as two:
        for client in (one, two):
            client.sendall(f"GET {path} HTTP/1.0\r\nX-Reader-Card: bookshop\r\n\r\n".encode())
        (answered,), _, _ = select.select([one, two], [], [], 10)
        assert answered.recv(4096).startswith(b"HTTP/1.0 200")
        site.close()
        assert (two if answered is one else one).recv(1) == b""


def test_a_service_that_is_down_stays_down(site: Site) -> None:
    assert [reviews_of(site, "reviews_down")[0] for _ in range(2)] == [503, 503]


def test_the_tax_register_answers_503_for_some_books(site: Site) -> None:
    down = volume_in(site, "tax_down")
    up = next(volume for volume in site.catalogue.volumes if volume.troubles == set())
    statuses = [get(site, f"api/tax/{volume.upc}.json")[0] for volume in (down, down, up)]
    assert statuses == [503, 503, 200]


def test_a_book_may_have_no_reviews(site: Site) -> None:
    assert reviews_of(site, "reviews_missing")[0] == 404


def test_a_broken_answer_is_no_json(site: Site) -> None:
    status, body = reviews_of(site, "reviews_broken")
    assert status == 200
    with pytest.raises(ValueError):
        json.loads(body)


def test_what_is_not_there_is_404(site: Site) -> None:
    assert {get(site, path)[0] for path in ("nowhere.html", "api/sellers/gone.json")} == {404}


def test_the_silent_page_answers_past_the_cache(site: Site) -> None:
    status, page = get(
        site, f"catalogue/{volume_in(site, 'never_answers').folder}/index.html?fresh=1"
    )
    assert status == 200
    assert b"product_main" in page


def test_closing_does_not_wait_for_the_page_that_never_answers() -> None:
    site = serve(5, delay=3600, port=0)
    address = urlsplit(site.url)
    silent = volume_in(site, "never_answers")
    with socket.create_connection((str(address.hostname), int(address.port or 0)), 10) as client:
        client.sendall(f"GET /catalogue/{silent.folder}/index.html HTTP/1.0\r\n\r\n".encode())
        # Connections are accepted in order: when this one is answered, the other is waiting.
        assert get(site, "index.html")[0] == 200
        site.close()
        assert client.recv(1) == b""  # the connection is closed, and was not answered


def test_a_site_takes_another_port_when_the_usual_one_is_taken() -> None:
    with serve(1) as first, serve(1) as second:
        assert first.url != second.url


def test_a_port_that_was_asked_for_is_not_changed(site: Site) -> None:
    with pytest.raises(OSError):
        serve(1, port=urlsplit(site.url).port)


def test_it_is_served_from_a_shell_as_well() -> None:
    command = [sys.executable, "-m", "bookshop.site", "--port=0", "--books=3", "--trouble=no_upc=0"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("3 books at http://127.0.0.1:")
        finally:
            process.terminate()
