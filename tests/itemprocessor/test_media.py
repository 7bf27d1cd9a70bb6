"""Scrapy's media pipelines do under the item processor what they do without."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scrapy.exceptions import DropItem
from scrapy.pipelines.files import FilesPipeline
from scrapy.pipelines.images import ImagesPipeline

from ..crawls.local_site import Site, body
from .crawling import page
from .test_like_scrapy import both

pytestmark = pytest.mark.filterwarnings("ignore::scrapy.exceptions.ScrapyDeprecationWarning")


class OnlyWithImages(ImagesPipeline):
    """Drops what has no image, as Scrapy's documentation shows."""

    def item_completed(self, results: Any, item: Any, info: Any) -> Any:
        item = super().item_completed(results, item, info)
        if not item["images"]:
            raise DropItem("no image")
        return item


def picture(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (60, 40), colour).save(out, "JPEG")
    return out.getvalue()


async def test_files_and_images_are_those_of_a_crawl_without_it(site: Site, tmp_path: Path) -> None:
    site["/red"], site["/blue"] = body(picture("red")), body(picture("blue"))
    site["/sample"], site["/no image"] = body(b"a sample"), body(b"text")
    items = [
        {"number": 0, "file_urls": [site.url("/sample")], "image_urls": [site.url("/red")]},
        # Shared with another item, and missing.
        {"number": 1, "file_urls": [site.url("/sample")], "image_urls": [site.url("/blue")]},
        {"number": 2, "file_urls": [site.url("/gone")], "image_urls": [site.url("/red")]},
        {"number": 3, "file_urls": [], "image_urls": [site.url("/no%20image")]},
    ]
    trace = await both(
        tmp_path,
        FilesPipeline,
        OnlyWithImages,
        pages=[page(*items[:2]), page(*items[2:])],
        FILES_STORE=str(tmp_path),
        IMAGES_STORE=str(tmp_path),
        IMAGES_THUMBS={"small": (10, 10)},
        FILES_EXPIRES=0,  # the second crawl downloads them again
        IMAGES_EXPIRES=0,
    )
    scraped = {item["number"]: item for item in trace.scraped}
    assert set(scraped) == {0, 1, 2}
    assert [item["number"] for item in trace.dropped] == [3]
    assert [file["url"] for file in scraped[1]["files"]] == [site.url("/sample")]
    assert scraped[2]["files"] == []
    (image,) = scraped[0]["images"]
    assert image["url"] == site.url("/red")
    with Image.open(tmp_path / image["path"].replace("full", "thumbs/small")) as small:
        assert max(small.size) == 10
    (file,) = scraped[0]["files"]
    assert (tmp_path / file["path"]).read_bytes() == b"a sample"
