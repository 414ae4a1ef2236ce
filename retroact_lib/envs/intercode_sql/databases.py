"""The 20 Spider development databases, from InterCode's MySQL dump to read-only SQLite files.

The dump (``spider_dev.sql``) and 23 questions with gold SQL (``sql_queries.csv``) ship in the PyPI package
``intercode-bench``; the package is located but never imported, since its code asks for docker and a MySQL server.
The dump is what ``mysqldump`` writes: one column or key per line, one INSERT per table. Column types, keys and
defaults are kept as MySQL shows them, because SQLite's own schema would lose them.

Two things differ from MySQL on purpose. Text columns compare with SQLite's NOCASE collation, which like
``utf8mb4_general_ci`` ignores case, but unlike it not accents. That collation also ignores trailing blanks, and
SQLite has no such built-in collation, so trailing blanks are cut from the data.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from retroact_lib.data_files import data_file
from retroact_lib.paths import cache_dir

FORMAT = 1
"""Version of the files in the cache: raise it when the conversion changes."""

_NAME = r"`((?:[^`]|``)+)`"
_CREATE_DATABASE = re.compile(rf"CREATE DATABASE\s+IF NOT EXISTS {_NAME}")
_CREATE_TABLE = re.compile(rf"CREATE TABLE {_NAME} \(")
_INSERT = re.compile(rf"INSERT INTO {_NAME} VALUES ")
_COLUMN = re.compile(rf"\s*{_NAME} (\w+(?:\([^)]*\))?(?: unsigned)?)(.*?),?\s*$")
_KEY = re.compile(r"\s*(PRIMARY |UNIQUE )?KEY (?:`[^`]+` )?\((.+)\),?\s*$")
_FOREIGN_KEY = re.compile(rf"\s*CONSTRAINT `[^`]+` FOREIGN KEY \({_NAME}\) REFERENCES {_NAME} \({_NAME}\)")
_VALUE = re.compile(r"\s*(?:'((?:[^'\\]|\\.|'')*)'|([^,()']+))\s*([,)])", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)|''", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "b": "\b", "Z": "\x1a"}


@dataclass
class Column:
    """One column as MySQL's DESC shows it. `default` is None where there is none."""

    name: str
    type: str
    nullable: bool
    key: str = ""
    """``PRI``, ``UNI``, ``MUL`` or empty."""
    default: str | None = None
    extra: str = ""


@dataclass
class Table:
    """One table. `name` is in lower case, as MySQL shows it under ``lower_case_table_names``."""

    name: str
    columns: list[Column] = field(default_factory=list)
    primary_key: list[str] = field(default_factory=list)
    foreign_keys: list[tuple[str, str, str]] = field(default_factory=list)
    """(column, referenced table in lower case, referenced column)."""


@dataclass
class Database:
    """A converted database: its SQLite file and its tables by lower-case name, in MySQL's (alphabetical) order."""

    name: str
    path: Path
    tables: dict[str, Table]


def real_questions() -> list[dict[str, str]]:
    """InterCode's own questions: dicts with keys ``query``, ``gold``, ``db``."""
    with data_file("sql_queries.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def load_databases(dump: Path | None = None) -> dict[str, Database]:
    """The databases by name, converted on the first call and read from the cache afterwards.

    A cache that is damaged or half written is made again. Raises ValueError if the dump holds no database.
    """
    dump = dump or data_file("spider_dev.sql")
    folder = cache_dir() / "spider" / f"{hashlib.sha256(dump.read_bytes()).hexdigest()[:16]}-v{FORMAT}"
    return _read_cache(folder) or _build_cache(dump, folder)


def _read_cache(folder: Path) -> dict[str, Database] | None:
    try:
        catalog = json.loads((folder / "catalog.json").read_text(encoding="utf-8"))
        databases = {}
        for name, entry in catalog.items():
            path = folder / f"{name}.sqlite"
            if hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
                return None
            databases[name] = Database(name, path, {t["name"]: _table(t) for t in entry["tables"]})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return databases or None


def _table(entry: dict) -> Table:
    columns = [Column(**column) for column in entry["columns"]]
    return Table(entry["name"], columns, entry["primary_key"], [tuple(key) for key in entry["foreign_keys"]])


def _build_cache(dump: Path, folder: Path) -> dict[str, Database]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        catalog = {}
        for name, statements in _split_dump(dump.read_text(encoding="utf-8")).items():
            tables = _convert(statements, made / f"{name}.sqlite")
            digest = hashlib.sha256((made / f"{name}.sqlite").read_bytes()).hexdigest()
            catalog[name] = {"sha256": digest, "tables": [asdict(table) for table in tables]}
        if not catalog:
            raise ValueError(f"{dump.name} holds no CREATE DATABASE statement, so it is not InterCode's dump.")
        (made / "catalog.json").write_text(json.dumps(catalog), encoding="utf-8")
        _swap_in(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    databases = _read_cache(folder)
    if databases is None:
        raise OSError(f"the database cache {folder} cannot be read back after writing it; remove it and try again.")
    return databases


def _swap_in(made: Path, folder: Path) -> None:
    """Put `made` in the place of `folder`; where another process was faster with a sound one, keep that."""
    if folder.exists() and _read_cache(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        os.replace(made, folder)
    except OSError:
        if _read_cache(folder) is None:
            raise


def _split_dump(text: str) -> dict[str, list[str]]:
    """Database name -> its CREATE TABLE and INSERT statements."""
    databases: dict[str, list[str]] = {}
    current: list[str] = []
    for statement in _statements(text):
        if created := _CREATE_DATABASE.match(statement):
            current = databases.setdefault(created[1], [])
        elif statement.startswith(("CREATE TABLE", "INSERT INTO")):
            current.append(statement)
    return databases


def _statements(text: str) -> Iterator[str]:
    """Statements of a mysqldump file: each starts at a line's start and ends with ``;`` at a line's end."""
    lines: list[str] = []
    for line in text.splitlines():
        if not lines and (not line or line.startswith("--")):
            continue
        lines.append(line)
        if line.rstrip().endswith(";"):
            yield "\n".join(lines)
            lines = []


def _convert(statements: list[str], path: Path) -> list[Table]:
    tables = {}
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA synchronous = OFF")
    try:
        for statement in statements:
            if created := _CREATE_TABLE.match(statement):
                table = _parse_table(created[1].lower(), statement)
                tables[created[1]] = table
                connection.execute(_sqlite_table(table))
            elif inserted := _INSERT.match(statement):
                table = tables[inserted[1]]
                marks = ", ".join("?" * len(table.columns))
                rows = list(_rows(statement[inserted.end() :]))
                connection.executemany(f'INSERT INTO "{table.name}" VALUES ({marks})', rows)
        connection.commit()
    finally:
        connection.close()
    return sorted(tables.values(), key=lambda table: table.name)


def _parse_table(name: str, statement: str) -> Table:
    table = Table(name)
    for line in statement.splitlines()[1:-1]:
        if foreign := _FOREIGN_KEY.match(line):
            reference = (foreign[1], foreign[2].lower(), foreign[3])
            if reference not in table.foreign_keys:
                table.foreign_keys.append(reference)
        elif key := _KEY.match(line):
            _mark_key(table, (key[1] or "").strip(), re.findall(_NAME, key[2]))
        elif column := _COLUMN.match(line):
            rest = column[3]
            default = re.search(r"DEFAULT (?:'((?:[^']|'')*)'|(\w+))", rest)
            value = None if default is None or default[2] == "NULL" else default[2] or default[1]
            extra = "auto_increment" if "AUTO_INCREMENT" in rest else ""
            if value == "CURRENT_TIMESTAMP":
                extra = "DEFAULT_GENERATED"
            table.columns.append(Column(column[1], column[2], "NOT NULL" not in rest, "", value, extra))
    return table


def _mark_key(table: Table, constraint: str, names: list[str]) -> None:
    columns = {column.name: column for column in table.columns}
    if constraint == "PRIMARY":
        table.primary_key = names
        for name in names:
            columns[name].key = "PRI"
    elif not columns[names[0]].key:
        columns[names[0]].key = "UNI" if constraint == "UNIQUE" and len(names) == 1 else "MUL"


def _sqlite_table(table: Table) -> str:
    parts = [f'"{c.name}" {_sqlite_type(c.type)}{"" if c.nullable else " NOT NULL"}' for c in table.columns]
    if table.primary_key:
        parts.append("PRIMARY KEY ({})".format(", ".join(f'"{name}"' for name in table.primary_key)))
    return f'CREATE TABLE "{table.name}" ({", ".join(parts)})'


def _sqlite_type(mysql_type: str) -> str:
    base = mysql_type.partition("(")[0].lower()
    if base.endswith(("int", "year", "unsigned")):
        return "INTEGER"
    if base in ("double", "float", "decimal"):
        return "REAL"
    return "TEXT COLLATE NOCASE"


def _rows(values: str) -> Iterator[list[str | int | float | None]]:
    """The rows of ``(1,'a'),(2,NULL);``."""
    position, end = 0, len(values)
    while (position := values.find("(", position, end)) >= 0:
        row: list[str | int | float | None] = []
        position += 1
        while True:
            value = _VALUE.match(values, position)
            if value is None:
                raise ValueError(f"cannot read the dump's values near {values[position : position + 40]!r}.")
            row.append(_number(value[2].strip()) if value[1] is None else _unescape(value[1]).rstrip(" "))
            position = value.end()
            if value[3] == ")":
                break
        yield row


def _number(text: str) -> int | float | None:
    if text.upper() == "NULL":
        return None
    return float(text) if re.search(r"[.eE]", text) else int(text)


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[1]) if found[1] else "'", text)
