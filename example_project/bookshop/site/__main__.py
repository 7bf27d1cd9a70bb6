"""Serve the local site from a shell: ``python -m bookshop.site --port 8017 --books 100``."""

from __future__ import annotations

import argparse
from threading import Event

from .catalogue import DEFAULT_TROUBLES
from .server import PORT, serve


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m bookshop.site", description=__doc__)
    parser.add_argument("--port", type=int, default=PORT, help="0 is any that is free")
    parser.add_argument("--books", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--delay", type=float, default=0.3, help="of the review service, seconds")
    parser.add_argument(
        "--trouble",
        action="append",
        default=[],
        metavar="NAME=PART",
        help=f"the part of the books that is in a trouble: {', '.join(DEFAULT_TROUBLES)}",
    )
    options = parser.parse_args()
    try:
        troubles = {
            name: float(part) for name, _, part in (t.partition("=") for t in options.trouble)
        }
        site = serve(
            options.books, options.seed, delay=options.delay, troubles=troubles, port=options.port
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    with site:
        print(f"{options.books} books at {site.url} (Ctrl-C ends it)", flush=True)
        try:
            Event().wait()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
