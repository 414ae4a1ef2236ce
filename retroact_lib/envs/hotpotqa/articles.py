"""Articles about countries, capitals, elements and their discoverers, written from facts that two packages ship.

An article has the form of HotpotQA's paragraphs: a title and a few sentences, each with one fact or two. No article
holds all that a question needs: one on a country does not name its capital, one on a capital says no more than whose it
is and in which region. Facts that were found wrong in the packages are corrected or left out.
"""

from __future__ import annotations

import json
import re
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

from retroact_lib.data_files import data_file
from retroact_lib.envs.base import listed

REGIONS = {
    "validation": ("Southern Europe", "Eastern Europe", "Southern Asia", "Central America"),
    "test": ("Northern Europe", "South America", "Western Africa", "South-eastern Asia"),
}
"""Split -> its parts of the world; training has the others. An element goes with the country of its discovery."""

REGION, PEOPLE, AREA, CURRENCY, CALLING, DOMAIN, DEMONYM, BORDERS = range(8)
"""Sentences of an article on a country."""
CAPITAL_OF = 0
"""Sentence of an article on a capital that names the country."""
SYMBOL, NUMBER, DISCOVERY, PLACE = range(4)
"""Sentences of an article on an element."""
DISCOVERED = 0
"""Sentence of an article on a discoverer that names the elements."""

_WRONG_COUNTRIES = {
    "Bermuda": "calling code",
    "British Indian Ocean Territory": "demonym",
    "Hong Kong": "capital and demonym",
    "Ireland": "population, which is the whole island's",
    "Northern Mariana Islands": "demonym",
    "Sri Lanka": "land border with India",
}
"""Left out -> what the package has wrong."""
_WRONG_ELEMENTS = {
    "Livermorium": "place",
    "Neodymium": "year",
    "Nobelium": "place, which is disputed",
    "Platinum": "year and discoverer, who died long before",
    "Radon": "year",
}
"""Left out -> what the package has wrong."""
_MISSPELT = {
    "A. Crawford": "Adair Crawford",
    "C.F. Aver von Welsbach": "Carl Auer von Welsbach",
    "Charles Hatchet": "Charles Hatchett",
    "Fredrich Stromeyer": "Friedrich Stromeyer",
    "George Brandt": "Georg Brandt",
    "J.L. Soret": "Jacques-Louis Soret",
    "Marguerite Derey": "Marguerite Perey",
    "Sir Humphrey Davy": "Sir Humphry Davy",
    "Smithson Tenant": "Smithson Tennant",
}
"""A discoverer as the package has the name -> as it is."""
_FOUND_MORE = ("Carl Auer von Welsbach", "Louis Vauquelin", "Per Theodor Cleve", "Smithson Tennant")
"""Discoverers of one element here who have a part in another that is left out: no article is about them."""
_UNITED_KINGDOM = ("England", "Scotland", "Great Britain")
_PERSON = re.compile(r"[A-Z][\w.'-]*(?: (?:[A-Z]|de |von )[\w.'-]*)+")
_TAKES_THE = re.compile(
    r"(.* )?(Islands|Republic|States|Kingdom|Emirates)|Philippines|Netherlands|Maldives|Comoros|Seychelles|"
    r"(Republic|Democratic Republic|Federated States|Isle) of .*|The .*"
)


@dataclass(frozen=True)
class Country:
    """A country or territory.

    `area` in square kilometres; `borders` names, or None where the neighbours' lists disagree.
    """

    name: str
    capital: str
    region: str
    population: int
    area: int
    currency: tuple[str, ...]
    calling: tuple[str, ...]
    domain: tuple[str, ...]
    demonym: tuple[str, ...]
    borders: tuple[str, ...] | None


@dataclass(frozen=True)
class Element:
    """A chemical element whose discovery is known: `country` is one of `countries`, `discoverer` one person or ''."""

    name: str
    symbol: str
    number: int
    year: int
    country: str
    discoverer: str
    period: int
    weight: float


@cache
def countries() -> dict[str, Country]:
    """Name -> country, of those about which all but the borders is known and whose capital is no other's.

    Raises FileNotFoundError if the package is not installed.
    """
    folder = data_file("countryinfo")
    entries = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    wanted = ("capital", "region", "population", "area", "currencies", "callingCodes", "demonym")
    known = [e for e in entries if all(e.get(key) not in (None, "", [], [""]) for key in (*wanted, "tld"))]
    known = [e for e in known if isinstance(e["capital"], str) and e["name"] not in _WRONG_COUNTRIES]
    capitals = Counter(entry["capital"] for entry in known)  # two entries each name Kingston and Belgrade
    known = [entry for entry in known if capitals[entry["capital"]] == 1]
    names = {entry["ISO"]["alpha3"]: entry["name"] for entry in entries}
    claimed = {entry["ISO"]["alpha3"]: set(entry.get("borders", ())) for entry in known}
    found = {}
    for entry in known:
        code = entry["ISO"]["alpha3"]
        agreed = all((other in claimed[code]) == (code in theirs) for other, theirs in claimed.items())
        borders = [names.get(other) for other in claimed[code]]
        found[entry["name"]] = Country(
            name=entry["name"],
            capital=entry["capital"],
            region=entry.get("intermediateregion") or entry["subregion"],
            population=int(entry["population"]),
            area=int(entry["area"]),
            currency=tuple(entry["currencies"]),
            calling=tuple(f"+{number}" for number in entry["callingCodes"]),
            domain=tuple(entry["tld"][:1]),
            demonym=tuple(name.strip() for name in entry["demonym"].split(",")),
            borders=tuple(sorted(borders)) if agreed and None not in borders else None,
        )
    return {name: found[name] for name in sorted(found)}


@cache
def elements() -> dict[str, Element]:
    """Name -> element, of those discovered in one of `countries`.

    Raises FileNotFoundError if the package is not installed.
    """
    database = sqlite3.connect(f"file:{data_file('elements.db')}?mode=ro", uri=True)
    try:
        rows = database.execute(
            "select name, symbol, atomic_number, discovery_year, discovery_location, discoverers, period, "
            "atomic_weight from elements where discovery_year is not null order by name"
        ).fetchall()
    finally:
        database.close()
    found = {}
    for name, symbol, number, year, place, people, period, weight in rows:
        country = "United Kingdom" if place in _UNITED_KINGDOM else place
        if country in countries() and name not in _WRONG_ELEMENTS:
            person = _MISSPELT.get(people, people) if _PERSON.fullmatch(people) else ""
            person = "" if person in _FOUND_MORE else person
            found[name] = Element(name, symbol, number, year, country, person, period, weight)
    return found


def written(countries: Collection[Country], elements: Collection[Element]) -> dict[str, list[str]]:
    """Title -> sentences of all articles that tell these facts; the titles differ."""
    found = {}
    for c in countries:
        found[c.name] = [
            f"{_start(c.name)} lies in the region {c.region}.",
            f"It has {c.population:,} inhabitants.",
            f"It covers {c.area:,} square kilometres.",
            _its("currency has the code", "currencies have the codes", c.currency),
            _its("calling code is", "calling codes are", c.calling),
            _its("internet domain is", "internet domains are", c.domain),
            _its("demonym is", "demonyms are", c.demonym),
        ]
        if c.borders is not None:
            neighbours = f"a border with {listed(map(the, c.borders))}" if c.borders else "no land border"
            found[c.name].append(f"It shares {neighbours}.")
    for c in countries:
        if c.capital not in found:
            found[c.capital] = [f"{c.capital} is the capital of {the(c.name)}.", f"It lies in the region {c.region}."]
    discovered: dict[str, list[str]] = {}
    for e in elements:
        found[e.name] = [
            f"{e.name} is the chemical element with the symbol {e.symbol}.",
            f"Its atomic number is {e.number}.",
            f"It was discovered in {e.year}.",
            f"Its discovery was made in {the(e.country)}.",
            f"It stands in period {e.period} and has the atomic weight {e.weight:.4g}.",
        ]
        if e.discoverer:
            discovered.setdefault(e.discoverer, []).append(e.name)
    for person, names in discovered.items():
        found[person] = [f"{person} is known for the discovery of {listed(names)}."]
    return found


def split_of(title: str) -> str:
    """The split that an article belongs to: its country's, or its element's."""
    return _splits()[title]


@cache
def _splits() -> dict[str, str]:
    of_region = {region: split for split, regions in REGIONS.items() for region in regions}
    found = {}
    for c in countries().values():
        found[c.name] = found[c.capital] = of_region.get(c.region, "train")
    for e in elements().values():
        found[e.name] = found[e.country]
        if e.discoverer:
            found.setdefault(e.discoverer, found[e.country])
    return found


def the(name: str) -> str:
    """A country as it stands within a sentence: with its article, where it has one."""
    return f"the {name.removeprefix('The ')}" if _TAKES_THE.fullmatch(name) else name


def fold(text: str) -> str:
    """Lower case, without accents and punctuation: what titles and keywords are compared by."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return " ".join(re.findall(r"\w+", "".join(letter for letter in plain if not unicodedata.combining(letter))))


def bare(title: str) -> str:
    """A title as titles are compared, without what stands in brackets at its end."""
    return fold(re.sub(r" \(.*\)$", "", title))


def has_phrase(text: str, phrase: str) -> bool:
    """Whether `text` has `phrase` as whole words."""
    return f" {fold(phrase)} " in f" {fold(text)} "


def _start(name: str) -> str:
    said = the(name)
    return said[0].upper() + said[1:]


def _its(one: str, several: str, names: tuple[str, ...]) -> str:
    return f"Its {one if len(names) == 1 else several} {listed(names)}."
