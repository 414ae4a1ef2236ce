"""Versions of the training articles: the same facts, told of other countries and elements.

There are a few hundred training articles, so a policy may learn by heart which country is larger and where an element
was found. In a version the names have changed hands, so that the answer has to be read, as in articles that are new. A
country keeps its capital, an element its symbol. Everything else comes with the facts: a border that two countries
share is still shared, under their new names.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

from retroact_lib.envs.hotpotqa import articles
from retroact_lib.envs.hotpotqa.articles import Country, Element


@dataclass(frozen=True)
class World:
    """Facts under their names, and the articles that tell them."""

    countries: dict[str, Country]
    elements: dict[str, Element]
    pages: dict[str, list[str]]


@cache
def world(number: int = 0) -> World:
    """The facts as they are (0), or a version of them, in which only training articles change, and their neighbours."""
    countries, elements = articles.countries(), articles.elements()
    if number:
        rng = random.Random(f"articles/{number}")
        names = _handed_round(countries, rng)
        countries = {
            names[c.name]: replace(
                c,
                name=names[c.name],
                capital=countries[names[c.name]].capital,
                borders=None if c.borders is None else tuple(sorted(names.get(other, other) for other in c.borders)),
            )
            for c in countries.values()
        }
        given = _handed_round(elements, rng)
        elements = {
            given[e.name]: replace(
                e, name=given[e.name], symbol=elements[given[e.name]].symbol, country=names[e.country]
            )
            for e in elements.values()
        }
        countries, elements = dict(sorted(countries.items())), dict(sorted(elements.items()))
    return World(countries, elements, articles.written(countries.values(), elements.values()))


def _handed_round(titles: Iterable[str], rng: random.Random) -> dict[str, str]:
    """Title -> the title that its facts go under: one drawn from those of training, or its own in the other splits."""
    titles = list(titles)
    own = [title for title in titles if articles.split_of(title) == "train"]
    return dict(zip(titles, titles, strict=True)) | dict(zip(own, rng.sample(own, len(own)), strict=True))
