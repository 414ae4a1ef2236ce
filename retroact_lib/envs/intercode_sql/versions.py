"""Versions of the training databases: the same rows, in tables and columns that go by other names.

There are nine training databases, so a policy may learn their names by heart and write them where they do not exist. In
versions a name has to be read from SHOW TABLES and DESC, as in a database that is new. Tables and columns are named by
the words of questions or by those of their own names. A table's name is singular or plural, perhaps with a word like
``data`` behind it. A column's is whole or cut short, with or without the table's word before it, perhaps with a number
behind it, in one of four spellings, and now and then with spaces or brackets, which SQL puts in backticks. Nobody can
guess how a word is cut short, so such a name has to be copied. Keys have one name in all tables, where no other column
has it.
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
import sqlite3
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from retroact_lib.envs.intercode_sql.databases import Database, Table
from retroact_lib.envs.intercode_sql.query import SPELLINGS, name_words, quoted
from retroact_lib.envs.intercode_sql.words import WORDS, phrase, plural
from retroact_lib.files import digest_of

_KEPT, _BY_WORDS, _PREFIXED, _SHORTENED, _NUMBERED, _ODD = 0.15, 0.5, 0.3, 0.2, 0.08, 0.15
"""Chances: a column keeps its name; it is named by the words of questions; the table's word stands before it; its long
words are cut short; a number stands behind it; its words are written with spaces, or the last of them in brackets."""
_ODDLY = (
    lambda words: " ".join(words).capitalize(),
    lambda words: "_".join(words[:-1]).capitalize() + f"_({words[-1]})",
)
_RESERVED = {"add", "char", "dec", "desc", "int", "real", "row", "set"}
"""Words cut short that MySQL keeps for itself."""
_SHORT = {"number": "num", "average": "avg", "percentage": "pct", "quantity": "qty", "amount": "amt", "year": "yr"}
"""Words that databases write in a way of their own."""

_LIST = ("data", "list", "info")
"""Words that some databases put behind a table's name."""
_TABLE_KEPT, _TABLE_SHORTENED, _LISTED = 0.2, 0.1, 0.15
"""Chances: a table keeps its name; its long words are cut short; such a word stands behind it."""


@dataclass(frozen=True)
class Names:
    """The names in a version, of those that change."""

    tables: dict[str, str] = field(default_factory=dict)
    columns: dict[tuple[str, str], str] = field(default_factory=dict)
    """(table, column), by their own names -> the column's name in the version."""

    def table(self, name: str) -> str:
        return self.tables.get(name, name)

    def column(self, table: str, name: str) -> str:
        return self.columns.get((table, name), name)


def new_names(database: Database, number: int) -> Names:
    """The names of version `number`. Version 0 is the database itself."""
    if not number:
        return Names()
    rng = random.Random(f"{database.name}/{number}")
    spelling = rng.choice(SPELLINGS)
    keys: dict[str, str] = {}
    names = Names()
    for table in database.tables.values():
        taken = {column.name.lower() for column in table.columns}
        for column in table.columns:
            is_key = column.key or any(column.name == foreign for foreign, _, _ in table.foreign_keys)
            new = _named(database.name, table, column.name, spelling, rng)
            if is_key:
                new = keys.setdefault(column.name, spelling(name_words(column.name)))
            keeps = not is_key and rng.random() < _KEPT
            usable = quoted(column.name) == column.name and new.lower() not in _RESERVED and not re.match(r"\d", new)
            if usable and not keeps and new.lower() not in taken:
                taken.add(new.lower())
                names.columns[table.name, column.name] = new
    taken = {name.lower() for name in database.tables}
    for table in database.tables:
        new = _table_named(database.name, table, rng)
        if rng.random() >= _TABLE_KEPT and quoted(new) == new and new not in taken | _RESERVED:
            taken.add(new)
            names.tables[table] = new
    return names


def _table_named(database: str, table: str, rng: random.Random) -> str:
    """A name for a table, in lower case: the words of questions, or its own with the number turned round."""
    words = WORDS.get(database, {}).get(table)
    options = [words.one, words.many] if words else [table, table if table.endswith("s") else plural(table)]
    parts = name_words(rng.choice(options))
    if rng.random() < _TABLE_SHORTENED:
        parts = [_cut_short(word, rng) for word in parts]
    if rng.random() < _LISTED:
        parts.append(rng.choice(_LIST))
    return rng.choice(("_", "_", "")).join(parts)


def _named(database: str, table: Table, column: str, spelling, rng: random.Random) -> str:
    """A name for a column: its own words or those of questions, and before it perhaps the table's word."""
    words = WORDS.get(database, {}).get(table.name)
    chances = (_BY_WORDS, _PREFIXED, _SHORTENED, _NUMBERED)
    by_words, prefixed, shortened, numbered = (rng.random() < chance for chance in chances)
    parts = name_words(phrase(words, column)) if words and by_words else name_words(column)
    if shortened:
        parts = [_cut_short(word, rng) for word in parts]
    noun = words.one.split()[-1].lower() if words else ""
    if prefixed and noun and noun not in parts:
        parts = [noun, *parts]
    if numbered:
        parts = [*parts, str(rng.randint(1, 3))]
    odd = rng.random() < _ODD and len(parts) > 1
    return rng.choice(_ODDLY)(parts) if odd else spelling(parts)


def _cut_short(word: str, rng: random.Random) -> str:
    """A word as databases write it: its first letters, or its consonants; short words stay."""
    if word in _SHORT or len(word) < 6:
        return _SHORT.get(word, word)
    return word[: rng.randint(3, 5)] if rng.random() < 0.5 else word[0] + re.sub("[aeiou]", "", word[1:])


def translated(sql: str, names: Names) -> str:
    """A generated query with the names of a version; aliases and what stands in quotes stay."""
    if nested := re.search(r"\((SELECT .*)\)", sql):
        outer = translated(f"{sql[: nested.start()]}\0{sql[nested.end() :]}", names)
        return outer.replace("\0", f"({translated(nested[1], names)})")
    tables = {alias or name: name for name, alias in re.findall(r"(?:FROM|JOIN) (\S+)(?: AS (\w+))?", sql)}

    def new(found: re.Match) -> str:
        text, before, table, of, word = found.groups()
        if text:
            return text
        if table:
            return before + names.table(table)
        homes = [tables[of]] if of in tables else tables.values()
        named = next((quoted(names.columns[t, word]) for t in homes if (t, word) in names.columns), word)
        return f"{names.table(of)}.{named}" if of else named

    texts = r"'[^']*'|`[^`]*`"
    return re.sub(rf"({texts})|((?:FROM|JOIN)\s+)(\S+)|(?:(\w+)\.)?(\b[A-Za-z_]\w*)", new, sql)


def version(database: Database, number: int) -> Database:
    """Version `number` of a database, made in the cache when it is first asked for."""
    names = new_names(database, number)
    if names == Names():
        return database
    digest = digest_of([[*column, new] for column, new in names.columns.items()] + [*names.tables.items()])
    path = database.path.with_name(f"{database.path.stem}~{digest[:12]}.sqlite")
    if not path.exists():
        _make(database, names, path)
    tables = [_renamed(table, names) for table in database.tables.values()]
    return Database(database.name, path, {table.name: table for table in tables})


def _make(database: Database, names: Names, path: Path) -> None:
    handle, made = tempfile.mkstemp(suffix=".sqlite", dir=path.parent)
    os.close(handle)
    try:
        Path(made).write_bytes(database.path.read_bytes())
        connection = sqlite3.connect(made)
        for (table, column), new in names.columns.items():
            connection.execute(f'ALTER TABLE "{table}" RENAME COLUMN "{column}" TO "{new}"')
        for table, new in names.tables.items():
            connection.execute(f'ALTER TABLE "{table}" RENAME TO "{new}"')
        connection.commit()
        connection.close()
        os.replace(made, path)
    finally:
        Path(made).unlink(missing_ok=True)


def _renamed(table: Table, names: Names) -> Table:
    return Table(
        names.table(table.name),
        [dataclasses.replace(column, name=names.column(table.name, column.name)) for column in table.columns],
        [names.column(table.name, column) for column in table.primary_key],
        [
            (names.column(table.name, column), names.table(other), names.column(other, key))
            for column, other, key in table.foreign_keys
        ],
    )
