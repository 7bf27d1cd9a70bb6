"""Scrapy's own FilesPipeline and other pipelines work as branches of a Parallel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scrapy import signals
from scrapy.pipelines.files import FilesPipeline

from scrapy_deferkit import Chain, Parallel, StackPipeline
from scrapy_deferkit._runtime import turn

from ..steps import Broken
from .local_site import Site, body, page
from .tracing import Shop, Trace, crawl


def measure(item: Any) -> Any:
    if item["title"] == "break":
        raise Broken
    item["length"] = len(item["title"])
    return item


async def crawl_by(site: Site, stack: Any, store: Path, spider: Any = Shop, **kwargs: Any) -> Trace:
    return await crawl(
        site.url("/"),
        settings={
            "ITEM_PIPELINES": {StackPipeline: 1},
            "DEFERKIT_STACK": stack,
            "FILES_STORE": str(store),
        },
        spider=spider,
        **kwargs,
    )


@pytest.mark.parametrize("pipeline", [FilesPipeline, "scrapy.pipelines.files.FilesPipeline"])
async def test_files_are_downloaded_beside_other_branches(
    site: Site, tmp_path: Path, pipeline: Any
) -> None:
    site["/cover"] = body(b"a cover")
    site["/sample"] = body(b"a sample")
    urls = [site.url("/cover"), site.url("/sample")]
    site["/"] = page({"title": "A", "file_urls": urls}, {"title": "B", "file_urls": []})
    trace = await crawl_by(site, Parallel(pipeline, measure), tmp_path)
    first, second = sorted(trace.scraped, key=lambda item: item["title"])
    assert first["length"] == second["length"] == 1
    assert second["files"] == []
    assert [file["url"] for file in first["files"]] == urls
    stored = [(tmp_path / file["path"]).read_bytes() for file in first["files"]]
    assert stored == [b"a cover", b"a sample"]


async def test_a_file_that_fails_leaves_the_other_branches_alone(
    site: Site, tmp_path: Path
) -> None:
    site["/"] = page({"title": "A", "file_urls": [site.url("/missing")]})
    trace = await crawl_by(site, Parallel(FilesPipeline, measure), tmp_path)
    (item,) = trace.scraped
    assert (item["files"], item["length"]) == ([], 1)


@pytest.mark.parametrize("breaking", [0, 1, 2])
async def test_a_failing_branch_does_not_take_the_file_from_other_items(
    site: Site, tmp_path: Path, breaking: int
) -> None:
    """All three ask for the file, which is answered only once one of them has failed."""

    class Releasing(Shop):
        @classmethod
        def from_crawler(cls, crawler: Any, *args: Any, **kwargs: Any) -> Any:
            spider = super().from_crawler(crawler, *args, **kwargs)
            crawler.signals.connect(spider.release, signals.item_error)
            return spider

        def release(self) -> None:
            released.set()

    async def break_late(item: Any) -> Any:
        while "/cover" not in site.paths:
            await turn()
        return measure(item)

    site["/cover"], released = site.held(b"a cover")
    titles = ["A", "B"]
    titles.insert(breaking, "break")
    site["/"] = page(*({"title": it, "file_urls": [site.url("/cover")]} for it in titles))
    stack = Chain(Parallel(FilesPipeline, break_late), name="shop")
    trace = await crawl_by(site, stack, tmp_path, Releasing)
    assert [(item["title"], step) for item, step, _ in trace.failed] == [
        ("break", "shop/Parallel/break_late")
    ]
    assert sorted(item["title"] for item in trace.scraped) == ["A", "B"]
    for item in trace.scraped:
        (file,) = item["files"]
        assert (tmp_path / file["path"]).read_bytes() == b"a cover"
    assert site.paths.count("/cover") == 1
    assert trace.reason == "finished"


async def test_a_file_of_a_failed_item_alone_is_waited_for_by_nobody(
    site: Site, tmp_path: Path
) -> None:
    site["/cover"], released = site.held(b"a cover")
    site["/"] = page({"title": "break", "file_urls": [site.url("/cover")]}, "/next")
    site["/next"] = page({"title": "A", "file_urls": []})

    class Releasing(Shop):
        def parse(self, response: Any) -> Any:
            if response.url.endswith("/next"):
                released.set()
            yield from super().parse(response)

    trace = await crawl_by(site, Parallel(FilesPipeline, measure), tmp_path, Releasing)
    assert [item["title"] for item in trace.scraped] == ["A"]
    assert [name for *_, name in trace.failed] == ["Broken"]
    assert trace.reason == "finished"
