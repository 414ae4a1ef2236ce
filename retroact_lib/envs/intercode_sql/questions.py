"""Questions with gold SQL, made from real schemas and real values by seeded templates.

A database becomes `View`s (tables with English words and their values), every family enumerates `Draft`s over
them, and `generate` shuffles the drafts, runs their gold and keeps those with a short, complete, unambiguous answer.
The same database gives the same questions on every machine: the only randomness is `random.Random` seeded by text.
"""

from __future__ import annotations

import itertools
import operator
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from retroact_lib.envs.intercode_sql.databases import Table
from retroact_lib.envs.intercode_sql.engine import Row, SqlDatabase, SqlError
from retroact_lib.envs.intercode_sql.query import quoted
from retroact_lib.envs.intercode_sql.words import LINKS, THROUGH, WORDS, Words, phrase, plural

MAX_ANSWER_ROWS = 30
PER_FAMILY = 24
"""At most this many questions of a family from one database."""
_VALUES_PER_COLUMN = 12
_ID_LIKE = re.compile(r"(^|_)(id|uid|no|number|code)$|Id$|ID$|Code$", re.ASCII)
_SMALL_NUMBERS = {"grade", "age", "cylinders"}
"""Numbers that also make natural groups."""
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 .,&/:-]{0,27}[A-Za-z0-9])?", re.ASCII)
_MAX_DIGITS = 7
_COMPARE = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}
_AGGREGATES = (("AVG", "average"), ("MAX", "highest"), ("MIN", "lowest"), ("SUM", "total"))
GOLD_SECONDS = 60.0
"""Time limit of a gold query: wide, so that a busy machine makes the same tasks as an idle one."""


@dataclass(frozen=True)
class Draft:
    """A question before it is checked: several wordings of one gold query."""

    wordings: tuple[str, ...]
    gold: str
    tables: tuple[str, ...]
    columns: tuple[str, ...]
    once: bool = False
    """Whether the question is clear only where no row comes twice."""


@dataclass(frozen=True)
class Condition:
    """A WHERE condition on one column: its words (after the table's plural), its SQL, the column."""

    words: str
    sql: str
    column: str


class View:
    """A table as the generator sees it. `values[c]` are column c's values in row order, None for NULL."""

    def __init__(self, engine: SqlDatabase, table: Table, words: Words) -> None:
        self.database = engine.database
        self.table = table
        self.name = table.name
        self.words = words
        self.foreign = {column for column, _, _ in table.foreign_keys}
        rows = engine.execute(f"SELECT * FROM {quoted(table.name)}", GOLD_SECONDS)
        self.size = len(rows)
        self.types = {c.name: c.type.partition("(")[0] for c in table.columns}
        self.values = {c.name: [row[i] for row in rows] for i, c in enumerate(table.columns)}

    @cached_property
    def numbers(self) -> list[str]:
        """Quantities: numeric, neither keys nor codes, at least three values, no NULL."""
        return [
            c
            for c in self._usable
            if self.types[c] in ("int", "double", "float", "decimal")
            and not _ID_LIKE.search(c)
            and c not in self.foreign
            and c not in self.table.primary_key
            and len(set(self.values[c])) >= 3
            and None not in self.values[c]
        ]

    @cached_property
    def texts(self) -> list[str]:
        """Text columns without NULL that a question can quote or ask for."""
        return [
            c
            for c in self._usable
            if self.types[c] in ("text", "char", "varchar")
            and None not in self.values[c]
            and sum(bool(_PLAIN_TEXT.fullmatch(v)) for v in self.values[c]) > self.size / 2
        ]

    @cached_property
    def categories(self) -> list[str]:
        """Columns whose values repeat: at least two values, on average at least 1.3 rows each."""
        columns = self.texts + [c for c in self.numbers if self.is_year(c) or c.lower() in _SMALL_NUMBERS]
        return [c for c in columns if 2 <= len(set(self.values[c])) <= self.size / 1.3 and c != self.words.label]

    @cached_property
    def _usable(self) -> list[str]:
        skip = self.words.skip
        return [c for c in self.values if c not in skip and _named(c) and any(v is not None for v in self.values[c])]

    @property
    def label(self) -> str:
        """The column that names a row."""
        return self.words.label

    def say(self, column: str) -> str:
        """A column in English."""
        return phrase(self.words, column)

    def is_year(self, column: str) -> bool:
        """Whether the column holds years, which have no average and no total."""
        return "year" in self.say(column).split() and "number" not in self.say(column)

    def examples(self, column: str, rng: random.Random) -> list:
        """Some quotable values of a column, in random order."""
        kept = sorted({v for v in self.values[column] if v is not None and _quotable(v)})
        return rng.sample(kept, min(len(kept), _VALUES_PER_COLUMN))


def generate(database: str, engine: SqlDatabase) -> dict[str, list[tuple[str, Draft, list[Row]]]]:
    """Family -> checked (question, draft, gold rows) of one database; families without a question are left out."""
    words = WORDS.get(database, {})
    views = {name: View(engine, table, words[name]) for name, table in engine.database.tables.items() if name in words}
    views = {name: view for name, view in views.items() if view.size >= 3}
    seen: set[str] = set()
    made = {}
    for family, enumerate_drafts in FAMILIES.items():
        rng = random.Random(f"{database}/{family}")
        drafts = list(enumerate_drafts(database, views, rng))
        rng.shuffle(drafts)
        kept: list[tuple[str, Draft, list[Row]]] = []
        golds: Counter[str] = Counter()
        repeats = 3 if family == "count" else 1
        for draft in drafts * repeats:
            question = rng.choice(draft.wordings)
            question = question[0].upper() + question[1:]
            if len(kept) == PER_FAMILY or question in seen or golds[draft.gold] == repeats:
                continue
            rows = _checked(engine, draft.gold)
            if rows and not (draft.once and len(set(rows)) < len(rows)):
                seen.add(question)
                golds[draft.gold] += 1
                kept.append((question, draft, rows))
        if kept:
            made[family] = kept
    return made


def _checked(engine: SqlDatabase, gold: str) -> list[Row] | None:
    try:
        rows = engine.execute(gold, GOLD_SECONDS)
    except SqlError as error:
        raise ValueError(f"the generated query {gold!r} does not run: {error}.") from None
    complete = all(value is not None and value != "" for row in rows for value in row)
    return rows if complete and 1 <= len(rows) <= MAX_ANSWER_ROWS and rows != [(0,)] else None


def _named(column: str) -> bool:
    return re.match(r"[A-Za-z]", column) is not None


def _quotable(value: object) -> bool:
    return _PLAIN_TEXT.fullmatch(value) is not None if isinstance(value, str) else len(_number(value)) <= _MAX_DIGITS


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


def _literal(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else _number(value)


def _spoken(value: object) -> str:
    return value if isinstance(value, str) else _number(value)


def _draft(
    view: View, gold: str, columns: list[str], *wordings: str, tables: tuple[str, ...] = (), once: bool = False
) -> Draft:
    return Draft(wordings, gold, tables or (view.name,), tuple(dict.fromkeys(columns)), once)


def _asking(what: str, which: str) -> tuple[str, ...]:
    """The wordings that ask for something of some rows."""
    return (
        f"What are the {what} of {which}?",
        *(f"{word} the {what} of {which}." for word in ("List", "Show", "Find")),
    )


def _equalities(view: View, rng: random.Random, columns: list[str]) -> Iterator[Condition]:
    for column in columns:
        for value in view.examples(column, rng):
            words = rng.choice(("whose {} is {}", "with {} {}", "having the {} {}"))
            words = words.format(view.say(column), _spoken(value))
            yield Condition(words, f"{quoted(column)} = {_literal(value)}", column)


def _comparisons(view: View, rng: random.Random) -> Iterator[Condition]:
    for column in view.numbers:
        more, less = ("after", "before") if view.is_year(column) else ("greater than", "less than")
        for value in view.examples(column, rng):
            word, sign = rng.choice(((more, ">"), (less, "<"), ("at least", ">="), ("at most", "<=")))
            matches = sum(_COMPARE[sign](other, value) for other in view.values[column])
            if 0 < matches < view.size:
                words = f"whose {view.say(column)} is {word} {_number(value)}"
                yield Condition(words, f"{quoted(column)} {sign} {_number(value)}", column)


def _selections(view: View, avoid: str, rng: random.Random) -> Iterator[tuple[str, str, list[str]]]:
    """What to ask for: (words in the plural, SQL, columns): the label, another column, or both."""
    others = [c for c in view.texts + view.numbers if c not in (view.label, avoid)]
    label = view.label
    if label != avoid:
        yield plural(view.say(label)), quoted(label), [label]
        if others:
            other = rng.choice(others)
            words = f"{plural(view.say(label))} and {plural(view.say(other))}"
            yield words, f"{quoted(label)}, {quoted(other)}", [label, other]
    if others:
        other = rng.choice(others)
        yield plural(view.say(other)), quoted(other), [other]


def _count(_: str, views: dict[str, View], __: random.Random) -> Iterator[Draft]:
    for view in views.values():
        many = view.words.many
        yield _draft(
            view,
            f"SELECT COUNT(*) FROM {quoted(view.name)}",
            [],
            f"How many {many} are there?",
            f"What is the number of {many}?",
            f"Count the {many}.",
            f"Find the total number of {many}.",
            f"How many {many} are recorded in the database?",
            f"Give the number of {many} that are recorded.",
        )


def _count_filter(_: str, views: dict[str, View], rng: random.Random) -> Iterator[Draft]:
    for view in views.values():
        many = view.words.many
        for on in [*_equalities(view, rng, view.categories), *_comparisons(view, rng)]:
            yield _draft(
                view,
                f"SELECT COUNT(*) FROM {quoted(view.name)} WHERE {on.sql}",
                [on.column],
                f"How many {many} are there {on.words}?",
                f"What is the number of {many} {on.words}?",
                f"Count the {many} {on.words}.",
                f"Find the number of {many} {on.words}.",
            )


def _aggregate(_: str, views: dict[str, View], rng: random.Random) -> Iterator[Draft]:
    for view in views.values():
        many = view.words.many
        for column in view.numbers:
            spoken, year = view.say(column), view.is_year(column)
            functions = [("MAX", "latest" if year else "highest"), ("MIN", "earliest" if year else "lowest")]
            functions += [] if year else [("AVG", "average"), ("SUM", "total")]
            filters = [None, None, *_equalities(view, rng, [c for c in view.categories if c != column])]
            for function, adjective in functions:
                on = rng.choice(filters)
                which = f"all {many}" if on is None else f"the {many} {on.words}"
                where = "" if on is None else f" WHERE {on.sql}"
                yield _draft(
                    view,
                    f"SELECT {function}({quoted(column)}) FROM {quoted(view.name)}{where}",
                    [column] + ([on.column] if on else []),
                    f"What is the {adjective} {spoken} of {which}?",
                    f"Find the {adjective} {spoken} of {which}.",
                    f"Among {which}, what is the {adjective} {spoken}?",
                    f"Give the {adjective} {spoken} of {which}.",
                )


def _listing(view: View, on: Condition, rng: random.Random) -> Iterator[Draft]:
    many = view.words.many
    for what, select, columns in _selections(view, on.column, rng):
        yield _draft(
            view,
            f"SELECT {select} FROM {quoted(view.name)} WHERE {on.sql}",
            [*columns, on.column],
            f"What are the {what} of the {many} {on.words}?",
            f"List the {what} of the {many} {on.words}.",
            f"Show the {what} of all {many} {on.words}.",
            f"Find the {what} of the {many} {on.words}.",
        )


def _filter(_: str, views: dict[str, View], rng: random.Random) -> Iterator[Draft]:
    for view in views.values():
        for on in _equalities(view, rng, view.texts):
            yield from _listing(view, on, rng)


def _range(_: str, views: dict[str, View], rng: random.Random) -> Iterator[Draft]:
    for view in views.values():
        for on in _comparisons(view, rng):
            yield from _listing(view, on, rng)


def _between(_: str, views: dict[str, View], rng: random.Random) -> Iterator[Draft]:
    for view in views.values():
        for column in view.numbers:
            values = sorted(view.examples(column, rng))
            for low, high in zip(values, values[2:], strict=False):
                words = f"whose {view.say(column)} is between {_number(low)} and {_number(high)}"
                sql = f"{quoted(column)} BETWEEN {_number(low)} AND {_number(high)}"
                yield from _listing(view, Condition(words, sql, column), rng)


def _two_filters(_: str, views: dict[str, View], rng: random.Random) -> Iterator[Draft]:
    for view in views.values():
        equal = [c for c in _equalities(view, rng, view.categories) if isinstance(view.values[c.column][0], str)]
        for on in equal:
            seconds = [c for c in [*_comparisons(view, rng), *equal] if c.column != on.column]
            for other in rng.sample(seconds, min(2, len(seconds))):
                joined = Condition(f"{on.words} and {other.words}", f"{on.sql} AND {other.sql}", on.column)
                for draft in _listing(view, joined, rng):
                    columns = tuple(dict.fromkeys((*draft.columns, other.column)))
                    yield replace(draft, columns=columns)
        for column in view.categories:
            values = [v for v in view.examples(column, rng) if isinstance(v, str)]
            for first, second in zip(values, values[1:], strict=False):
                name = quoted(column)
                words = f"whose {view.say(column)} is {first} or {second}"
                yield from _listing(view, Condition(words, f"{name} = '{first}' OR {name} = '{second}'", column), rng)


def _above_average(_: str, views: dict[str, View], rng: random.Random) -> Iterator[Draft]:
    for view in views.values():
        for column in view.numbers:
            if not view.is_year(column):
                for word, sign in (("above", ">"), ("below", "<")):
                    sql = f"{quoted(column)} {sign} (SELECT AVG({quoted(column)}) FROM {quoted(view.name)})"
                    words = f"whose {view.say(column)} is {word} the average"
                    yield from _listing(view, Condition(words, sql, column), rng)


def _superlative(_: str, views: dict[str, View], rng: random.Random) -> Iterator[Draft]:
    for view in views.values():
        one = view.words.one
        for column in view.numbers:
            year = view.is_year(column)
            for best, direction, word in (
                (max, " DESC", "latest" if year else "highest"),
                (min, " ASC", "earliest" if year else "lowest"),
            ):
                if view.values[column].count(best(view.values[column])) > 1:
                    continue
                for asked in [c for c in view.texts + view.numbers if c != column]:
                    what = view.say(asked)
                    which = f"the {one} with the {word} {view.say(column)}"
                    by = f"ORDER BY {quoted(column)}{direction} LIMIT 1"
                    yield _draft(
                        view,
                        f"SELECT {quoted(asked)} FROM {quoted(view.name)} {by}",
                        [asked, column],
                        f"What is the {what} of {which}?",
                        f"Find the {what} of {which}.",
                        f"Give the {what} of {which}.",
                        f"Which {one} has the {word} {view.say(column)}? Show its {what}.",
                    )


def _order(_: str, views: dict[str, View], rng: random.Random) -> Iterator[Draft]:
    for view in views.values():
        many, label = view.words.many, view.label
        for column in view.numbers + [c for c in view.texts if _alphabetical(view, c)]:
            if len({_folded(v) for v in view.values[column]}) < view.size:
                continue
            for direction, word in ((" ASC", "ascending"), (" DESC", "descending")):
                top = rng.choice((0, 3, 5)) if column in view.numbers else 0
                if top >= view.size:
                    top = 0
                end = {" ASC": "lowest", " DESC": "highest"}[direction]
                gold = f"SELECT {quoted(label)} FROM {quoted(view.name)} ORDER BY {quoted(column)}{direction}"
                what, by = plural(view.say(label)), view.say(column)
                if top:
                    yield _draft(
                        view,
                        f"{gold} LIMIT {top}",
                        [label, column],
                        f"What are the {what} of the {top} {many} with the {end} {by}, in {word} order?",
                        f"List the {what} of the {top} {many} with the {end} {by}, in {word} order of {by}.",
                        f"Show the {what} of the top {top} {many} when sorted by {by} in {word} order.",
                        f"Sort the {many} by {by} in {word} order and give the {what} of the first {top}.",
                    )
                else:
                    yield _draft(
                        view,
                        gold,
                        [label, column],
                        f"List the {what} of all {many} in {word} order of {by}.",
                        f"What are the {what} of all {many}, sorted by {by} in {word} order?",
                        f"Show the {what} of the {many} ordered by {by}, {word}.",
                        f"Sort the {many} by {by} in {word} order and give their {what}.",
                    )


def _alphabetical(view: View, column: str) -> bool:
    """Whether sorting a text column means something: words, not dates or numbers written as text."""
    return "date" not in view.say(column) and all(v.isascii() and v[:1].isalpha() for v in view.values[column])


def _folded(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _distinct(_: str, views: dict[str, View], rng: random.Random) -> Iterator[Draft]:
    for view in views.values():
        many = view.words.many
        for column in view.categories:
            what = plural(view.say(column))
            for on in [None, *_comparisons(view, rng)]:
                if on and on.column == column:
                    continue
                which = f"all {many}" if on is None else f"the {many} {on.words}"
                where = "" if on is None else f" WHERE {on.sql}"
                yield _draft(
                    view,
                    f"SELECT DISTINCT {quoted(column)} FROM {quoted(view.name)}{where}",
                    [column] + ([on.column] if on else []),
                    f"What are the different {what} of {which}?",
                    f"List the distinct {what} of {which}.",
                    f"Show all different {what} of {which}.",
                    f"Find the distinct {what} of {which}.",
                )


def _count_distinct(_: str, views: dict[str, View], rng: random.Random) -> Iterator[Draft]:
    for view in views.values():
        many = view.words.many
        for column in view.categories:
            what = plural(view.say(column))
            for on in [None, *_comparisons(view, rng)]:
                if on and on.column == column:
                    continue
                which = f"all {many}" if on is None else f"the {many} {on.words}"
                where = "" if on is None else f" WHERE {on.sql}"
                yield _draft(
                    view,
                    f"SELECT COUNT(DISTINCT {quoted(column)}) FROM {quoted(view.name)}{where}",
                    [column] + ([on.column] if on else []),
                    f"How many different {what} do {which} have?",
                    f"Count the distinct {what} of {which}.",
                    f"What is the number of different {what} of {which}?",
                    f"Find the number of distinct {what} of {which}.",
                )


def _group_count(_: str, views: dict[str, View], rng: random.Random) -> Iterator[Draft]:
    for view in views.values():
        many = view.words.many
        for column in view.categories:
            name, what = quoted(column), view.say(column)
            for on in [None, *_comparisons(view, rng)]:
                if on and on.column == column:
                    continue
                which, where = (many, "") if on is None else (f"{many} {on.words}", f" WHERE {on.sql}")
                yield _draft(
                    view,
                    f"SELECT {name}, COUNT(*) FROM {quoted(view.name)}{where} GROUP BY {name}",
                    [column] + ([on.column] if on else []),
                    f"For each {what}, how many {which} are there? Show the {what} and the count.",
                    f"Show each {what} and the number of {which} for it.",
                    f"List every {what} together with its number of {which}.",
                    f"What are the {plural(what)} and how many {which} does each have?",
                )


def _group_having(_: str, views: dict[str, View], __: random.Random) -> Iterator[Draft]:
    for view in views.values():
        many = view.words.many
        for column in view.categories:
            name, what = quoted(column), plural(view.say(column))
            counts = sorted(Counter(map(_folded, view.values[column])).values())
            for least in range(2, min(counts[-1], 12) + 1):
                gold = f"SELECT {name} FROM {quoted(view.name)} GROUP BY {name} HAVING COUNT(*)"
                yield _draft(
                    view,
                    f"{gold} >= {least}",
                    [column],
                    f"Which {what} have at least {least} {many}?",
                    f"List the {what} with at least {least} {many}.",
                    f"Find the {what} shared by at least {least} {many}.",
                    f"Show the {what} that {least} or more {many} have.",
                )
                yield _draft(
                    view,
                    f"{gold} < {least}",
                    [column],
                    f"Which {what} have fewer than {least} {many}?",
                    f"List the {what} with fewer than {least} {many}.",
                    f"Find the {what} shared by fewer than {least} {many}.",
                    f"Show the {what} that fewer than {least} {many} have.",
                )


def _group_top(_: str, views: dict[str, View], __: random.Random) -> Iterator[Draft]:
    for view in views.values():
        many = view.words.many
        for column in view.categories:
            name, what = quoted(column), view.say(column)
            counts = sorted(Counter(map(_folded, view.values[column])).values())
            for direction, word, tied in (
                (" DESC", "most", counts[-1] == counts[-2]),
                (" ASC", "fewest", counts[0] == counts[1]),
            ):
                if not tied:
                    order = f"GROUP BY {name} ORDER BY COUNT(*){direction} LIMIT 1"
                    yield _draft(
                        view,
                        f"SELECT {name} FROM {quoted(view.name)} {order}",
                        [column],
                        f"Which {what} has the {word} {many}?",
                        f"What is the {what} with the {word} {many}?",
                        f"Find the {what} that the {word} {many} have.",
                        f"Give the {what} with the {word} {many}.",
                    )


def _group_aggregate(_: str, views: dict[str, View], __: random.Random) -> Iterator[Draft]:
    for view in views.values():
        many = view.words.many
        for group in view.categories:
            for column in view.numbers:
                if column == group:
                    continue
                year = view.is_year(column)
                functions = [("MAX", "latest" if year else "highest"), ("MIN", "earliest" if year else "lowest")]
                for function, word in functions + ([] if year else [("AVG", "average")]):
                    what, by = f"{word} {view.say(column)}", view.say(group)
                    yield _draft(
                        view,
                        f"SELECT {quoted(group)}, {function}({quoted(column)}) FROM {quoted(view.name)} "
                        f"GROUP BY {quoted(group)}",
                        [group, column],
                        f"For each {by}, what is the {what} of the {many}? Show the {by} and the {what}.",
                        f"Show each {by} and the {what} of its {many}.",
                        f"List every {by} with the {what} of the {many} that have it.",
                        f"What are the {plural(by)} of the {many} and the {what} for each?",
                    )


@dataclass(frozen=True)
class _Link:
    """A foreign key from a row of `child` to a row of `parent`."""

    child: View
    parent: View
    column: str
    key: str
    words: str
    """Between the child and the parent: "held at"."""

    def join(self, first: View) -> str:
        """``FROM first AS T1 JOIN other AS T2 ON ...``."""
        here, there, a, b = (self.child, self.parent, self.column, self.key)
        if first is self.parent:
            here, there, a, b = there, here, b, a
        return f"FROM {quoted(here.name)} AS T1 JOIN {quoted(there.name)} AS T2 ON T1.{quoted(a)} = T2.{quoted(b)}"


def _links(database: str, views: dict[str, View]) -> Iterator[_Link]:
    for child in views.values():
        for column, parent, key in child.table.foreign_keys:
            if parent in views and parent != child.name:
                words = LINKS.get(f"{database}.{child.name}.{column}", "of")
                yield _Link(child, views[parent], column, key, words)


def _alone(link: _Link) -> bool:
    """Whether no other foreign key joins the same two tables, so that "has a" is unambiguous."""
    return [parent for _, parent, _ in link.child.table.foreign_keys].count(link.parent.name) == 1


def _join_filter(database: str, views: dict[str, View], rng: random.Random) -> Iterator[Draft]:
    for link in _links(database, views):
        child, parent = link.child, link.parent
        both = (child.name, parent.name)
        for on in _equalities(parent, rng, parent.texts):
            for what, select, columns in _selections(child, link.column, rng):
                select = ", ".join(f"T1.{part}" for part in select.split(", "))
                which = f"the {child.words.many} {link.words} the {parent.words.one} {on.words}"
                yield _draft(
                    child,
                    f"SELECT {select} {link.join(child)} WHERE T2.{on.sql}",
                    [*columns, on.column],
                    *_asking(what, which),
                    tables=both,
                )
        if not _alone(link):
            continue
        for on in [*_equalities(child, rng, child.texts), *_comparisons(child, rng)]:
            what, label = plural(parent.say(parent.label)), quoted(parent.label)
            which = f"the {parent.words.many} that have at least one of the {child.words.many} {on.words}"
            yield _draft(
                parent,
                f"SELECT DISTINCT T1.{label} {link.join(parent)} WHERE T2.{on.sql}",
                [parent.label, on.column],
                f"What are the different {what} of {which}?",
                f"List the distinct {what} of {which}.",
                f"Show the different {what} of {which}.",
                f"Find the distinct {what} of {which}.",
                tables=both[::-1],
            )


def _join_count(database: str, views: dict[str, View], rng: random.Random) -> Iterator[Draft]:
    for link in _links(database, views):
        child, parent = link.child, link.parent
        many, one = child.words.many, parent.words.one
        for on in _equalities(parent, rng, parent.texts):
            which = f"{many} {link.words} the {one} {on.words}"
            yield _draft(
                child,
                f"SELECT COUNT(*) {link.join(child)} WHERE T2.{on.sql}",
                [on.column],
                f"How many {which} are there?",
                f"What is the number of {which}?",
                f"Count the {which}.",
                f"Find the number of {which}.",
                tables=(child.name, parent.name),
            )
        label, what = quoted(parent.label), parent.say(parent.label)
        if _alone(link) and len(set(parent.values[parent.label])) == parent.size:
            yield _draft(
                parent,
                f"SELECT T1.{label}, COUNT(*) {link.join(parent)} GROUP BY T1.{label}",
                [parent.label],
                f"For each {one} that has {many}, show its {what} and the number of {many}.",
                f"What are the {plural(what)} of the {parent.words.many} that have {many}, and how many has each?",
                f"List the {what} and the number of {many} of every {one} that has {many}.",
                f"How many {many} does each {one} with {many} have? Show the {what} and the count.",
                tables=(parent.name, child.name),
            )


def _join_top(database: str, views: dict[str, View], _: random.Random) -> Iterator[Draft]:
    for link in _links(database, views):
        child, parent = link.child, link.parent
        counts = sorted(Counter(v for v in child.values[link.column] if v in set(parent.values[link.key])).values())
        if len(counts) < 2 or counts[-1] == counts[-2] or not _alone(link):
            continue
        for asked in [c for c in parent.texts + parent.numbers if c != link.key]:
            what, many, one = parent.say(asked), child.words.many, parent.words.one
            key = f"T1.{quoted(link.key)}"
            yield _draft(
                parent,
                f"SELECT T1.{quoted(asked)} {link.join(parent)} GROUP BY {key} ORDER BY COUNT(*) DESC LIMIT 1",
                [asked, link.key],
                f"What is the {what} of the {one} with the most {many}?",
                f"Which {one} has the most {many}? Show its {what}.",
                f"Find the {what} of the {one} that has the largest number of {many}.",
                f"Give the {what} of the {one} with the most {many}.",
                tables=(parent.name, child.name),
            )


def _not_in(database: str, views: dict[str, View], rng: random.Random) -> Iterator[Draft]:
    for link in _links(database, views):
        child, parent = link.child, link.parent
        if not _alone(link) or None in child.values[link.column]:
            continue
        inner = f"(SELECT {quoted(link.column)} FROM {quoted(child.name)}"
        outer = f"FROM {quoted(parent.name)} WHERE {quoted(link.key)} NOT IN {inner}"
        both = (parent.name, child.name)
        nothing = [("", f"that have no {child.words.many}", [])]
        for on in _equalities(child, rng, [c for c in child.categories if c != link.column]):
            nothing.append((f" WHERE {on.sql}", f"that have none of the {child.words.many} {on.words}", [on.column]))
        for where, words, used in nothing:
            many = parent.words.many
            yield _draft(
                parent,
                f"SELECT COUNT(*) {outer}{where})",
                [link.key, link.column, *used],
                f"How many {many} are there {words}?",
                f"Count the {many} {words}.",
                f"What is the number of {many} {words}?",
                f"Find the number of {many} {words}.",
                tables=both,
            )
            for what, select, columns in _selections(parent, "", rng):
                yield _draft(
                    parent,
                    f"SELECT {select} {outer}{where})",
                    [*columns, link.key, link.column, *used],
                    f"What are the {what} of the {many} {words}?",
                    f"List the {what} of the {many} {words}.",
                    f"Show the {what} of {many} {words}.",
                    f"Find the {what} of all {many} {words}.",
                    tables=both,
                )


def _join_aggregate(database: str, views: dict[str, View], rng: random.Random) -> Iterator[Draft]:
    for link in _links(database, views):
        child, parent = link.child, link.parent
        for column in child.numbers:
            if child.is_year(column):
                continue
            for on in _equalities(parent, rng, parent.texts):
                function, word = rng.choice(_AGGREGATES)
                what = f"{word} {child.say(column)}"
                which = f"the {child.words.many} {link.words} the {parent.words.one} {on.words}"
                yield _draft(
                    child,
                    f"SELECT {function}(T1.{quoted(column)}) {link.join(child)} WHERE T2.{on.sql}",
                    [column, on.column],
                    f"What is the {what} of {which}?",
                    f"Find the {what} of {which}.",
                    f"Give the {what} of {which}.",
                    f"Among {which}, what is the {what}?",
                    tables=(child.name, parent.name),
                )


@dataclass(frozen=True)
class _Path:
    """From a row of `first` to one of `last`, which a third table joins."""

    first: View
    last: View
    joined: str
    """``FROM first AS T1 JOIN middle AS T2 ON ... JOIN last AS T3 ON ...``."""
    words: str
    """Between the two: "made by a car maker from"."""


def _paths(database: str, views: dict[str, View]) -> Iterator[_Path]:
    """Over two foreign keys: from a row to what its parent belongs to, or through a table that links two others."""
    links = list(_links(database, views))
    for link in links:
        for up in links:
            if up.child is link.parent and up.parent is not link.child:
                keys = (link.column, link.key, up.column, up.key)
                words = f"{link.words} {_a(link.parent.words.one)} {up.words}"
                yield _path(link.child, link.parent.name, up.parent, keys, words)
    tables = next(iter(views.values())).database.tables if views else {}
    for table in tables.values():
        keys = {column: (parent, key) for column, parent, key in table.foreign_keys if parent in views}
        words = THROUGH.get(f"{database}.{table.name}", {})
        for here, there in itertools.permutations([column for column in words if column in keys], 2):
            (first, own), (last, other) = keys[here], keys[there]
            yield _path(views[first], table.name, views[last], (own, here, there, other), words[here])


def _path(first: View, middle: str, last: View, keys: tuple[str, str, str, str], words: str) -> _Path:
    a, b, c, d = map(quoted, keys)
    joined = f"FROM {quoted(first.name)} AS T1 JOIN {quoted(middle)} AS T2 ON T1.{a} = T2.{b}"
    return _Path(first, last, f"{joined} JOIN {quoted(last.name)} AS T3 ON T2.{c} = T3.{d}", words)


def _a(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def _join_three(database: str, views: dict[str, View], rng: random.Random) -> Iterator[Draft]:
    for path in _paths(database, views):
        first, last = path.first, path.last
        both = (first.name, last.name)
        for on in _equalities(last, rng, last.texts):
            for what, select, columns in _selections(first, "", rng):
                select = ", ".join(f"T1.{part}" for part in select.split(", "))
                which = f"the {first.words.many} {path.words} {_a(last.words.one)} {on.words}"
                yield _draft(
                    first,
                    f"SELECT {select} {path.joined} WHERE T3.{on.sql}",
                    [*columns, on.column],
                    *_asking(what, which),
                    tables=both,
                    once=True,
                )
        here, there = first.say(first.label), last.say(last.label)
        pair = f"the {here} of the {first.words.one} and the {there} of the {last.words.one}"
        which = f"{first.words.one} {path.words} {_a(last.words.one)}"
        yield _draft(
            first,
            f"SELECT T1.{quoted(first.label)}, T3.{quoted(last.label)} {path.joined}",
            [first.label, last.label],
            f"For each {which}, show {pair}.",
            f"Show {pair} for every {which}.",
            tables=both,
            once=True,
        )


FAMILIES: dict[str, Callable[[str, dict[str, View], random.Random], Iterator[Draft]]] = {
    "count": _count,
    "count_filter": _count_filter,
    "aggregate": _aggregate,
    "filter": _filter,
    "range": _range,
    "between": _between,
    "two_filters": _two_filters,
    "above_average": _above_average,
    "superlative": _superlative,
    "order": _order,
    "distinct": _distinct,
    "count_distinct": _count_distinct,
    "group_count": _group_count,
    "group_having": _group_having,
    "group_top": _group_top,
    "group_aggregate": _group_aggregate,
    "join_filter": _join_filter,
    "join_count": _join_count,
    "join_top": _join_top,
    "join_aggregate": _join_aggregate,
    "not_in": _not_in,
    "join_three": _join_three,
}
"""Question families by name, from one table to three."""
