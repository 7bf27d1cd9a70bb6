"""Passwords and tokens are neither stored with a letter nor shown in a message."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from scrapy_deferkit import StackConfigError
from scrapy_deferkit._config import Config
from scrapy_deferkit._feeds import Feeds
from scrapy_deferkit._jobfile import Batch, JobFile
from scrapy_deferkit.deadletters import DeadLetters
from scrapy_deferkit.exceptions import DeadLettersError
from scrapy_deferkit.testing import mock_crawler

from .deadletters.failures import failed
from .itemprocessor.crawling import Starting, crawl_with

GIVEN = {
    "shop": "uk",
    "pages": 3,
    "author": "Austen",
    "keywords": "novel",
    "api_token": "s3cret",
    "HTTP_PASS": "s3cret",
    "apikey": "s3cret",
    "oauth": "s3cret",
    "proxy": "http://me:s3cret@proxy:3128/",
    "_job": "17",
    "long": "x" * 501,
    "found": ["no text"],
}
KEPT = {
    "shop": "uk",
    "pages": "3",
    "author": "Austen",
    "keywords": "novel",
    "proxy": "http://me:***@proxy:3128/",
}


class LoggedIn(Starting):
    """A spider with secrets of its own, which is given more than it keeps."""

    http_pass = "s3cret"

    def __init__(self, *args: Any, shop: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.base = f"https://{shop}.example"
        self.session_id = self.note = "s3cret"


class Failing:
    def process_item(self, item: Any) -> Any:
        raise ValueError("no price")


async def arguments_of_a_letter(tmp_path: Path, **settings: Any) -> Any:
    url = f"sqlite:///{tmp_path}/dead.db"
    settings["DEFERKIT_DEAD_LETTERS_URL"] = url
    await crawl_with(Failing, items=[{"number": 1}], spider=LoggedIn, arguments=GIVEN, **settings)
    (letter,) = DeadLetters(url).select()
    return json.loads(letter.spider_args)


async def test_a_letter_has_the_arguments_of_its_spider_and_no_other_attribute(
    tmp_path: Path,
) -> None:
    assert await arguments_of_a_letter(tmp_path) == KEPT


@pytest.mark.parametrize("make", [str, re.compile])
async def test_what_looks_like_a_secret_is_for_a_setting_to_say(tmp_path: Path, make: Any) -> None:
    kept = await arguments_of_a_letter(tmp_path, DEFERKIT_SECRETS=make("^(api|http)_|shop"))
    assert set(kept) == {*KEPT, "apikey", "oauth"} - {"shop"}


@pytest.mark.no_runtime
@pytest.mark.parametrize("value", ["(token", 3, b"token", re.compile(b"token")])
def test_a_pattern_that_is_none_is_refused(value: Any) -> None:
    crawler = mock_crawler({"DEFERKIT_SECRETS": value})
    with pytest.raises(StackConfigError, match="^DEFERKIT_SECRETS = .*a regular expression is"):
        Config.from_settings(crawler.settings)


@pytest.mark.no_runtime
def test_a_url_of_the_wrong_type_shows_no_password() -> None:
    crawler = mock_crawler({"DEFERKIT_DEAD_LETTERS_URL": b"postgresql://me:s3cret@host/name"})
    with pytest.raises(
        StackConfigError, match=r"DEFERKIT_DEAD_LETTERS_URL = .*\(bytes\)"
    ) as raised:
        Config.from_settings(crawler.settings)
    assert "s3cret" not in str(raised.value)


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    "url",
    [
        "postgresql:/me:s3cret@host/name",
        "postgresql//me:s3cret@host/name",
        "postgresql:me:s3cret@host/name",
        "postgresql:///me:s3cret@host/name",
        "postgresql://me:a@s3cret@host/name",
        "postgresql://me:s3cret/@/x@host/name",
        "postgresql://me:s3cret@host:port/name",
        "postgres ql://me:s3cret@host/name",
        "me:s3cret@host/name",
        "mysql://host/name?user=me&password=s3cret",
        "mysql://host/name?password=s3cret@x&sslpassword=s3cret",
        "host=h user=me password=s3cret",
        "host=h user=me password = 's3cret s3cret'",
        "sqlite://me:s3cret@host/dead.db",
    ],
)
def test_no_password_is_shown_of_a_malformed_url(url: str) -> None:
    with pytest.raises(DeadLettersError, match="DEFERKIT_DEAD_LETTERS_URL = ") as raised:
        DeadLetters(url)
    assert "s3" not in str(raised.value)
    assert "cret" not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.no_runtime
def test_a_password_with_an_at_sign_is_told_how_to_be_written() -> None:
    with pytest.raises(DeadLettersError, match="write @ as %40"):
        DeadLetters("postgresql://me:a@b@host/name")


@pytest.mark.no_runtime
def test_options_that_look_like_secrets_are_not_shown() -> None:
    pytest.importorskip("psycopg")
    letters = DeadLetters("postgresql://me:s3cret@host/name?sslpassword=s3cret&passwrd=s3cret&a=b")
    assert letters.url == "postgresql+psycopg://me:***@host/name?a=b"


@pytest.mark.no_runtime
@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_the_files_of_letters_and_of_jobs_are_their_owners_alone(tmp_path: Path) -> None:
    modes: dict[str, str] = {}

    def look() -> None:
        for path in tmp_path.rglob("*"):
            if path.is_file():
                modes[path.name] = stat.filemode(path.stat().st_mode)

    before = os.umask(0)
    try:
        letters = DeadLetters(f"sqlite:///{tmp_path}/data/dead.db")
        letters.put([failed("a")])
        with letters._transaction(write=True):
            look()
        job = JobFile(tmp_path / "job")
        job.open(4)
        job.write(Batch(seen=[(b"1",)]), [])
        job.note_given(1)
        look()
        job.close()
    finally:
        os.umask(before)
    assert set(modes.values()) == {"-rw-------"}
    of_letters = {"dead.db", "dead.db-wal", "dead.db-shm"}
    of_jobs = {"deferkit.lock", "deferkit.sqlite", "deferkit.sqlite-wal", "deferkit.work"}
    assert of_letters | of_jobs < set(modes)


@pytest.mark.no_runtime
def test_a_feed_that_is_not_covered_is_named_without_its_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    feeds = {"ftp://me:s3cret@host/a.jsonl": {"format": "jsonlines"}}
    found: Any = None  # is not asked for a feed that is not covered
    assert Feeds(mock_crawler({"FEEDS": feeds})).resume(found, tmp_path) == []
    assert "The feed ftp://me:***@host/a.jsonl is not covered" in caplog.text
    assert "s3cret" not in caplog.text.partition("The feed ")[2]
