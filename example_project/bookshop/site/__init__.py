"""A small shop on this machine, with the pages of books.toscrape.com and the world's troubles."""

from .catalogue import DEFAULT_TROUBLES, Catalogue, Volume, make_catalogue
from .server import Site, serve

__all__ = ["DEFAULT_TROUBLES", "Catalogue", "Site", "Volume", "make_catalogue", "serve"]
