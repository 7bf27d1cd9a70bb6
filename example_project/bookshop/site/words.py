"""The words that titles, descriptions and reviews are made of."""

from __future__ import annotations

import re
from random import Random

CATEGORIES = ("Travel", "Mystery", "Poetry", "Science", "Food and Drink", "Young Adult", "History")

ADJECTIVES = ("Quiet", "Crooked", "Second", "Paper", "Borrowed", "Late", "Salt", "Unlit", "Patient")
NOUNS = ("Harbour", "Orchard", "Ledger", "Lantern", "Staircase", "Kettle", "Atlas", "Ferry", "Café")
NAMES = ("Ines", "O'Malley", "Émile", "Tomasz", "Wen", "Halldóra", "Bea & Otto", "the Miller")
PATTERNS = (
    "The {adjective} {noun}",
    "{name}'s {noun}",
    "A {noun} for {name}",
    "How to Keep a {adjective} {noun}",
    "{adjective} {noun}, {other} {noun2} (The {noun} Cycle #{number})",
    "{noun} & {noun2}: Notes on the {adjective} Year",
)

OPENINGS = ("When the tide forgets the town", "Nobody asked who wound the clock", "Every spring")
MIDDLES = ("a retired cartographer", "the last typesetter in the valley", "a girl with two names")
TURNS = ("finds a door that was never drawn", "begins to answer other people's letters", "leaves")
ENDS = ("“Not today,” says the sea.", "What follows costs £3 and a friendship.", "...more")

PRAISE = ("I read it on the ferry and missed my stop.", "Slow, then not slow at all.", "Fine maps.")
SELLERS = (
    ("north", "North Pier Books", "Ullapool"),
    ("atlas", "Atlas & Daughters", "Ghent"),
    ("loft", "The Loft", "Brno"),
)


def make_title(random: Random) -> str:
    """Make up a title."""
    noun, noun2 = random.sample(NOUNS, 2)
    adjective, other = random.sample(ADJECTIVES, 2)
    return random.choice(PATTERNS).format(
        adjective=adjective,
        other=other,
        noun=noun,
        noun2=noun2,
        name=random.choice(NAMES),
        number=random.randint(1, 9),
    )


def make_description(random: Random) -> str:
    """Make up a description of a few sentences."""
    sentences = [
        f"{random.choice(OPENINGS)}, {random.choice(MIDDLES)} {random.choice(TURNS)}."
        for _ in range(random.randint(1, 4))
    ]
    return " ".join([*sentences, random.choice(ENDS)])


def slug(text: str) -> str:
    """Give the part of an address that stands for *text*.

    >>> slug("Bea & Otto's Café")
    'bea-ottos-caf'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("'", "")).strip("-")
