"""A process that takes letters: `python replay.py URL OWNER KEEP`.

It waits for a line, takes a page of letters, waits for another line, then takes letters in pages,
delivers them, and prints what it delivered. With KEEP above 0 it takes that many more, prints them
as kept, and waits for its end.
"""

from __future__ import annotations

import sys

from scrapy_deferkit.deadletters import DeadLetters, Selection

SELECTION = Selection(spider="books")


def main(url: str, owner: str, keep: int) -> None:
    letters = DeadLetters(url)
    letters.count()
    print("ready", flush=True)
    sys.stdin.readline()
    delivered = 0
    while taken := letters.take(SELECTION, 100, owner, 60):
        if not delivered:
            print("took", flush=True)
            sys.stdin.readline()
        for letter in letters.delivered(owner, [letter.id for letter in taken]):
            print("delivered", letter)
        delivered += len(taken)
        if keep and delivered >= keep:
            for letter in letters.take(SELECTION, keep, owner, 60):
                print("kept", letter.id)
            print("waiting", flush=True)
            sys.stdin.readline()
    letters.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
