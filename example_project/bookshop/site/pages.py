"""The pages of the local site, in the markup of books.toscrape.com."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from .catalogue import Catalogue, Volume
from .words import slug

PAGE_SIZE = 20
_STARS = ("", "One", "Two", "Three", "Four", "Five")
_NO_NUMBER = ("Price on request", "£--.--", "ask in the shop", "£ n/a")


def make_pages(catalogue: Catalogue) -> dict[str, str]:
    """Give the HTML of every page, by its path below the root of the site."""
    pages = dict(_listings(catalogue, "catalogue", "All products", catalogue.volumes))
    pages["catalogue/page-1.html"] = pages.pop("catalogue/index.html")
    pages["index.html"] = _listing(catalogue, "", "All products", catalogue.volumes, 1)
    pages.update(_listings(catalogue, "catalogue/category/books_1", "Books", catalogue.volumes))
    for category, folder in _category_folders(catalogue).items():
        volumes = [volume for volume in catalogue.volumes if volume.category == category]
        pages.update(_listings(catalogue, folder, category, volumes))
    for volume in catalogue.volumes:
        pages[f"catalogue/{volume.folder}/index.html"] = _detail(catalogue, volume)
    return pages


def _category_folders(catalogue: Catalogue) -> dict[str, str]:
    return {
        category: f"catalogue/category/books/{slug(category)}_{number}"
        for number, category in enumerate(catalogue.categories(), start=2)
    }


def _listings(
    catalogue: Catalogue, folder: str, title: str, volumes: Sequence[Volume]
) -> Iterator[tuple[str, str]]:
    for number in range(1, _page_count(volumes) + 1):
        file = "index.html" if number == 1 else f"page-{number}.html"
        yield f"{folder}/{file}", _listing(catalogue, folder, title, volumes, number)


def _page_count(volumes: Sequence[Volume]) -> int:
    return max(1, -(-len(volumes) // PAGE_SIZE))


def _listing(
    catalogue: Catalogue, folder: str, title: str, volumes: Sequence[Volume], number: int
) -> str:
    root = "../" * (folder.count("/") + 1) if folder else ""
    shown = volumes[(number - 1) * PAGE_SIZE : number * PAGE_SIZE]
    pods = "".join(_pod(volume, root) for volume in shown)
    # The front page is page 1 of the catalogue, one folder up.
    here = "" if folder else "catalogue/"
    last = _page_count(volumes)
    first = "page-1.html" if folder == "catalogue" else "index.html"
    before = first if number == 2 else f"page-{number - 1}.html"
    previous = f'<li class="previous"><a href="{before}">previous</a></li>' if number > 1 else ""
    following = (
        f'<li class="next"><a href="{here}page-{number + 1}.html">next</a></li>'
        if number < last
        else ""
    )
    return _page(
        title,
        root,
        f"""
<ul class="breadcrumb">
    <li><a href="{root}index.html">Home</a></li>
    <li class="active">{escape(title)}</li>
</ul>
<div class="row">
<aside class="sidebar col-sm-4 col-md-3">{_menu(catalogue, root)}</aside>
<div class="col-sm-8 col-md-9">
<div class="page-header action"><h1>{escape(title)}</h1></div>
<section>
    <form method="get" class="form-horizontal"><strong>{len(volumes)}</strong> results.</form>
    <ol class="row">{pods}</ol>
    <ul class="pager">{previous}<li class="current">Page {number} of {last}</li>{following}</ul>
</section>
</div>
</div>""",
    )


def _menu(catalogue: Catalogue, root: str) -> str:
    entries = "".join(
        f'<li><a href="{root}{folder}/index.html">\n    {escape(category)}\n</a></li>'
        for category, folder in _category_folders(catalogue).items()
    )
    return f"""
<div class="side_categories"><ul class="nav nav-list"><li>
    <a href="{root}catalogue/category/books_1/index.html">Books</a>
    <ul>{entries}</ul>
</li></ul></div>"""


def _pod(volume: Volume, root: str) -> str:
    address = f"{root}catalogue/{volume.folder}/index.html"
    title = escape(volume.title)
    return f"""
<li class="col-xs-6 col-sm-4 col-md-3 col-lg-3"><article class="product_pod">
    <div class="image_container"><a href="{address}"><img src="{root}{_image(volume)}"
        alt="{title}" class="thumbnail"></a></div>
    {_rating(volume)}
    <h3><a href="{address}" title="{title}">{title}</a></h3>
    <div class="product_price"><p class="price_color">{escape(_price(volume))}</p></div>
</article></li>"""


def _detail(catalogue: Catalogue, volume: Volume) -> str:
    root = "../../"
    title = escape(volume.title)
    if "cut_short" in volume.troubles:
        return _page(volume.title, root, '<div class="content"><div id="promotions">')
    folder = _category_folders(catalogue)[volume.category]
    heading = title.replace(" ", " \n   ") if "untidy_title" in volume.troubles else title
    withdrawn = (
        '<div class="alert alert-danger" role="alert">Withdrawn from sale</div>'
        if "withdrawn" in volume.troubles
        else ""
    )
    return _page(
        volume.title,
        root,
        f"""
<ul class="breadcrumb">
    <li><a href="{root}index.html">Home</a></li>
    <li><a href="../category/books_1/index.html">Books</a></li>
    <li><a href="{root}{folder}/index.html">{escape(volume.category)}</a></li>
    <li class="active">{title}</li>
</ul>
<div class="content"><div id="content_inner"><article class="product_page">
<div class="row">
<div class="col-sm-6"><div id="product_gallery" class="carousel"><div class="thumbnail">
    <div class="carousel-inner"><div class="item active"><img src="{root}{_image(volume)}"
        alt="{title}" /></div></div>
</div></div></div>
<div class="col-sm-6 product_main">
    <h1>{heading}</h1>
    <p class="price_color">{escape(_price(volume))}</p>
    {_availability(volume)}
    {_rating(volume)}
    {withdrawn}
</div>
</div>
{_description(volume)}
<div class="sub-header"><h2>Product Information</h2></div>
<table class="table table-striped">{_table(volume)}</table>
<section>
    <div id="reviews" class="sub-header" data-source="{root}api/reviews/{volume.upc}.json"></div>
    <div id="offers" class="sub-header" data-source="{root}api/offers/{volume.upc}.json"></div>
    <div id="tax" class="sub-header" data-source="{root}api/tax/{volume.upc}.json"></div>
</section>
</article></div></div>""",
    )


def _table(volume: Volume) -> str:
    price = "n/a" if "no_price" in volume.troubles else f"£{volume.price}"
    rows = {
        "UPC": volume.upc,
        "Product Type": "E-books" if volume.file else "Books",
        "Price (excl. tax)": price,
        "Price (incl. tax)": price,
        "Tax": "£0.00",
        "Number of reviews": str(len(volume.reviews)),
    }
    if volume.file:
        rows["File"] = volume.file
    if "no_upc" in volume.troubles:
        del rows["UPC"]
    return "".join(
        f"<tr><th>{name}</th><td>{escape(value)}</td></tr>" for name, value in rows.items()
    )


def _price(volume: Volume) -> str:
    if volume.troubles & {"price_text", "no_price"}:
        return _NO_NUMBER[volume.number % len(_NO_NUMBER)]
    return f"£{volume.price}"


def _availability(volume: Volume) -> str:
    if "no_stock" in volume.troubles:
        return ""
    return f"""<p class="instock availability">
    <i class="icon-ok"></i>

        In stock ({volume.stock} available)

</p>"""


def _rating(volume: Volume) -> str:
    word = "" if "no_rating" in volume.troubles else _STARS[volume.rating]
    return f'<p class="star-rating {word}">{"<i class=icon-star></i>" * 5}</p>'


def _description(volume: Volume) -> str:
    if "no_description" not in volume.troubles:
        text = escape(volume.description, quote=False)
    elif volume.number % 2:
        return ""
    else:
        text = "\n   \n"
    return f"""<div id="product_description" class="sub-header">
    <h2>Product Description</h2>
</div>
<p>{text}</p>"""


def _image(volume: Volume) -> str:
    return f"media/cache/{volume.upc[:2]}/{volume.upc[2:4]}/{volume.upc}.jpg"


def _page(title: str, root: str, body: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en-us" class="no-js">
<head>
    <title>
    {escape(title)} | A shop of made-up books
</title>
    <meta http-equiv="content-type" content="text/html; charset=UTF-8" />
</head>
<body id="default" class="default">
<header class="header container-fluid"><a href="{root}index.html">Books</a></header>
<div class="container-fluid page"><div class="page_inner">{body}
</div></div>
</body>
</html>
"""
