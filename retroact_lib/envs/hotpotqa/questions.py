"""Questions that need two articles, with answers checked against the facts.

Ten families of HotpotQA's two types: ``bridge`` (an article names the one to read next; intersections too) and
``comparison`` (of two articles, yes or no among them). Every article that a question needs belongs to its split.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from retroact_lib.envs.hotpotqa import articles as facts
from retroact_lib.envs.hotpotqa.articles import Country, Element, has_phrase
from retroact_lib.envs.hotpotqa.versions import World, world

TYPES = {
    "bridge_capital": "bridge",
    "bridge_border": "bridge",
    "bridge_discoverer": "bridge",
    "bridge_discovery": "bridge",
    "intersection_border": "bridge",
    "comparison_population": "comparison",
    "comparison_area": "comparison",
    "comparison_discovery": "comparison",
    "yesno_region": "comparison",
    "yesno_discovery": "comparison",
}
"""Family -> HotpotQA's type."""

PER_FAMILY = {"train": 160, "validation": 24, "test": 40}
"""At most so many questions of a family, drawn with a fixed seed; a tenth of them may have the same answer."""

ATTRIBUTES = {
    "currency": (
        facts.CURRENCY,
        (
            "What is the code of the currency of {}?",
            "Which currency code does {} use?",
            "Name the currency code of {}.",
        ),
    ),
    "calling": (
        facts.CALLING,
        ("What is the calling code of {}?", "Which calling code does {} have?", "Name the calling code of {}."),
    ),
    "domain": (
        facts.DOMAIN,
        (
            "What is the internet domain of {}?",
            "Which internet domain does {} have?",
            "Name the internet domain of {}.",
        ),
    ),
    "demonym": (
        facts.DEMONYM,
        ("What is the demonym of {}?", "Which demonym does {} have?", "Name the demonym of {}."),
    ),
}
"""Field of a country -> its sentence, and how it is asked for."""

_CAPITAL = (
    "the country whose capital is {}",
    "the country that has {} as its capital",
    "the country governed from {}",
)
_NEIGHBOUR = (
    "the only country that {} borders",
    "the one country with which {} shares a border",
    "the single neighbour of {}",
)
_PLACE = (
    "the country where {} was discovered",
    "the country in which the element {} was found",
    "the country of the discovery of {}",
)
_FOUND = ("the element found by {}", "the element that {} found", "the element whose discoverer is {}")
_ASKED = {
    "symbol": (facts.SYMBOL, ("What is the symbol of {}?", "Which symbol does {} have?", "Name the symbol of {}.")),
    "number": (
        facts.NUMBER,
        ("What is the atomic number of {}?", "Which atomic number does {} have?", "Name the atomic number of {}."),
    ),
    "year": (
        facts.DISCOVERY,
        ("In what year was {} discovered?", "When was {} discovered?", "Name the year of discovery of {}."),
    ),
}
_BOTH = (
    "Which country borders both {} and {}?",
    "Which country shares a border with {} and with {}?",
    "Name the country that is a neighbour of both {} and {}.",
)
_MORE = (
    "Which has more inhabitants, {} or {}?",
    "Do more people live in {} or in {}?",
    "Which of {} and {} has the larger population?",
)
_LARGER = (
    "Which is larger by area, {} or {}?",
    "Which of {} and {} has the larger area?",
    "Does {} or {} cover the larger area?",
)
_FIRST = (
    "Which element was discovered first, {} or {}?",
    "Which of the elements {} and {} was discovered earlier?",
    "Was {} or {} the element to be discovered first?",
)
_SAME_REGION = (
    "Do {} and {} lie in the same region?",
    "Are {} and {} in the same region?",
    "Does {} lie in the same region as {}?",
)
_SAME_PLACE = (
    "Were {} and {} discovered in the same country?",
    "Was the discovery of {} made in the same country as that of {}?",
    "Do {} and {} share the country of their discovery?",
)


@dataclass(frozen=True)
class Question:
    """`supporting` holds (title, sentence) of what must be read, in that order."""

    family: str
    text: str
    answer: str
    supporting: tuple[tuple[str, int], tuple[str, int]]


def questions(split: str, number: int = 0) -> list[Question]:
    """The questions of a split in a version of its articles, the same on every machine."""
    whole = world(number)
    pages = {title: page for title, page in whole.pages.items() if facts.split_of(title) == split}
    countries, elements = (
        {name: thing for name, thing in things.items() if name in pages} for things in (whole.countries, whole.elements)
    )
    own, found = World(countries, elements, pages), []
    for family, make in _MAKERS.items():
        rng = random.Random(f"{split}/{family}/{number}" if number else f"{split}/{family}")
        made = list(dict.fromkeys(make(own, rng)))
        if not family.startswith("yesno"):  # there yes and no take turns
            made = list(_varied(rng.sample(made, len(made)), PER_FAMILY[split] // 10))
        found += made[: PER_FAMILY[split]]
    return found


def _varied(made: list[Question], most: int) -> Iterator[Question]:
    """Those questions of which fewer than `most` before have the same answer."""
    counts: Counter[str] = Counter()
    for question in made:
        counts[question.answer] += 1
        if counts[question.answer] <= most:
            yield question


def _of_country(
    family: str, own: World, start: str, sentence: int, country: Country, said: tuple[str, ...], rng
) -> Iterator[Question]:
    """All that can be asked about `country`, which the article `start` leads to without giving anything away."""
    if has_phrase(start, country.name) or has_phrase(country.name, start):
        return
    for field, (index, asked) in ATTRIBUTES.items():
        answer, *more = getattr(country, field)
        told = has_phrase(country.name, answer) or has_phrase(" ".join(own.pages[start]), answer)
        if not told and not more:
            name = facts.the(start) if family == "bridge_border" else start
            text = rng.choice(asked).format(rng.choice(said).format(name))
            yield Question(family, text, answer, ((start, sentence), (country.name, index)))


def _bridge_capital(own: World, rng) -> Iterator[Question]:
    for c in own.countries.values():
        yield from _of_country("bridge_capital", own, c.capital, facts.CAPITAL_OF, c, _CAPITAL, rng)


def _bridge_border(own: World, rng) -> Iterator[Question]:
    for c in own.countries.values():
        if c.borders and len(c.borders) == 1 and c.borders[0] in own.countries:
            only = own.countries[c.borders[0]]
            yield from _of_country("bridge_border", own, c.name, facts.BORDERS, only, _NEIGHBOUR, rng)


def _bridge_discovery(own: World, rng) -> Iterator[Question]:
    for e in own.elements.values():
        yield from _of_country("bridge_discovery", own, e.name, facts.PLACE, own.countries[e.country], _PLACE, rng)


def _bridge_discoverer(own: World, rng) -> Iterator[Question]:
    of_all = Counter(e.discoverer for e in facts.elements().values())
    for e in own.elements.values():
        if e.discoverer and of_all[e.discoverer] == 1:
            for field, (index, asked) in _ASKED.items():
                text = rng.choice(asked).format(rng.choice(_FOUND).format(e.discoverer))
                support = ((e.discoverer, facts.DISCOVERED), (e.name, index))
                yield Question("bridge_discoverer", text, str(getattr(e, field)), support)


def _intersection_border(own: World, rng) -> Iterator[Question]:
    for a, b in combinations(own.countries.values(), 2):
        common = set(a.borders or ()) & set(b.borders or ())
        if len(common) == 1 and common <= own.countries.keys() and min(len(a.borders), len(b.borders)) > 1:
            a, b = rng.sample((a, b), 2)
            support = ((a.name, facts.BORDERS), (b.name, facts.BORDERS))
            yield Question("intersection_border", _asked(_BOTH, a, b, rng), min(common), support)


def _compared(
    family: str, things: dict, field: str, sentence: int, said: tuple[str, ...], rng, apart
) -> Iterator[Question]:
    """Which of two things has the larger value of `field`, where `apart(larger, smaller)`."""
    pairs = list(combinations(things.values(), 2))
    for a, b in rng.sample(pairs, min(len(pairs), 400)):
        a, b = rng.sample((a, b), 2)
        low, high = sorted((a, b), key=lambda x: getattr(x, field))
        if apart(getattr(high, field), getattr(low, field)):
            winner = low if field == "year" else high
            support = ((a.name, sentence), (b.name, sentence))
            yield Question(family, _asked(said, a, b, rng), winner.name, support)


def _comparison_population(own: World, rng) -> Iterator[Question]:
    return _compared(
        "comparison_population", own.countries, "population", facts.PEOPLE, _MORE, rng, lambda x, y: x > 1.2 * y
    )


def _comparison_area(own: World, rng) -> Iterator[Question]:
    return _compared("comparison_area", own.countries, "area", facts.AREA, _LARGER, rng, lambda x, y: x > 1.2 * y)


def _comparison_discovery(own: World, rng) -> Iterator[Question]:
    return _compared("comparison_discovery", own.elements, "year", facts.DISCOVERY, _FIRST, rng, lambda x, y: x > y)


def _same(family: str, things: dict, field: str, sentence: int, said: tuple[str, ...], rng) -> Iterator[Question]:
    """Whether two things have the same `field`: yes and no equally often."""
    pairs = rng.sample(list(combinations(things.values(), 2)), len(things) * (len(things) - 1) // 2)
    alike = [pair for pair in pairs if getattr(pair[0], field) == getattr(pair[1], field)]
    other = [pair for pair in pairs if getattr(pair[0], field) != getattr(pair[1], field)]
    for yes, no in zip(alike, other, strict=False):
        for (a, b), answer in ((yes, "yes"), (no, "no")):
            support = ((a.name, sentence), (b.name, sentence))
            yield Question(family, _asked(said, a, b, rng), answer, support)


def _asked(said: tuple[str, ...], a: Country | Element, b: Country | Element, rng) -> str:
    return rng.choice(said).format(facts.the(a.name), facts.the(b.name))


def _yesno_region(own: World, rng) -> Iterator[Question]:
    return _same("yesno_region", own.countries, "region", facts.REGION, _SAME_REGION, rng)


def _yesno_discovery(own: World, rng) -> Iterator[Question]:
    return _same("yesno_discovery", own.elements, "country", facts.PLACE, _SAME_PLACE, rng)


_MAKERS = {
    "bridge_capital": _bridge_capital,
    "bridge_border": _bridge_border,
    "bridge_discoverer": _bridge_discoverer,
    "bridge_discovery": _bridge_discovery,
    "intersection_border": _intersection_border,
    "comparison_population": _comparison_population,
    "comparison_area": _comparison_area,
    "comparison_discovery": _comparison_discovery,
    "yesno_region": _yesno_region,
    "yesno_discovery": _yesno_discovery,
}
