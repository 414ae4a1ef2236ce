"""A gold query as an expert reads it: its tables and columns, and what it asks for in words.

All of it is read off the syntax tree (sqlglot), so it works on any gold query, generated or official.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import sqlglot
from sqlglot import exp

from retroact_lib.envs.base import listed

_NAME_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_PLAIN_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_RESERVED = {"show", "rank", "group", "groups", "order", "table", "key", "keys", "index", "condition", "match", "range"}
SPELLINGS = (
    lambda words: "_".join(words),
    lambda words: "_".join(word.capitalize() for word in words),
    lambda words: "".join(word.capitalize() for word in words),
    lambda words: words[0] + "".join(word.capitalize() for word in words[1:]),
)
"""How databases write a name of several words."""
Schema = Mapping[str, Sequence[tuple[str, str]]]
"""table -> [(column, type)], in the database's own spelling."""


def normalise(sql: str) -> str:
    """Collapse white space outside quotes, so that a query stands on one line."""
    return re.sub(r"""('[^']*'|"[^"]*"|`[^`]*`)|\s+""", lambda m: m[1] or " ", sql).strip()


class Query:
    """A parsed query over a schema; raises ValueError if `sql` is not one SELECT (or a set operation).

    `words` says what the question calls the columns, as far as that is known.
    """

    def __init__(self, sql: str, schema: Schema, words: Mapping[str, str] | None = None) -> None:
        try:
            tree = sqlglot.parse_one(sql, read="mysql")
        except sqlglot.errors.SqlglotError as error:
            raise ValueError(f"cannot parse the gold SQL {sql!r}: {str(error).splitlines()[0]}") from None
        if not isinstance(tree, (exp.Select, exp.SetOperation)):
            raise ValueError(f"the gold SQL should be a SELECT, got {sql!r}")
        self.sql, self.tree, self.schema, self.words = normalise(sql), tree, schema, words or {}
        spelling = {name.lower(): name for name in schema}
        found = [spelling.get(table.name.lower()) for table in tree.find_all(exp.Table, bfs=False)]
        self.tables: list[str] = list(dict.fromkeys(name for name in found if name))
        """The tables it reads, in order of appearance."""
        self._alias = {t.alias_or_name.lower(): spelling.get(t.name.lower()) for t in tree.find_all(exp.Table)}

    def copy(self) -> tuple[exp.Expression, exp.Select]:
        """A copy to change: the whole tree, and its outermost (of a set operation: leftmost) SELECT."""
        tree = self.tree.copy()
        return tree, _outer(tree)

    @property
    def select(self) -> exp.Select:
        return _outer(self.tree)

    def names(self) -> list[str]:
        """The columns that it names, each once, in order of appearance."""
        found = [column.name for column in self.tree.find_all(exp.Column, bfs=False) if not column.is_star]
        return list(dict.fromkeys(found))

    def texts(self) -> list[str]:
        """The texts in quotes that hold a letter, each once, in order of appearance."""
        found = [node.name for node in self.tree.find_all(exp.Literal, bfs=False) if node.is_string]
        return list(dict.fromkeys(text for text in found if re.search(r"[^\W\d_]", text)))

    def columns(self, table: str) -> list[str]:
        return [name for name, _ in self.schema.get(table, ())]

    def table_of(self, column: exp.Column) -> str | None:
        """The table that a column belongs to, by its alias or else by its name."""
        if column.table:
            return self._alias.get(column.table.lower())
        has = [t for t in self.tables if column.name.lower() in (c.lower() for c in self.columns(t))]
        return has[0] if has else None

    def siblings(self, column: exp.Column) -> list[str]:
        """The other columns of its table, those of the same type first."""
        table = self.table_of(column)
        if table is None:
            return []
        types = {name.lower(): type_ for name, type_ in self.schema[table]}
        own = types.get(column.name.lower())
        others = [name for name, _ in self.schema[table] if name.lower() != column.name.lower()]
        return sorted(others, key=lambda name: types[name.lower()] != own)


def _outer(tree: exp.Expression) -> exp.Select:
    while isinstance(tree, (exp.SetOperation, exp.Subquery)):
        tree = tree.this
    return tree


def render(tree: exp.Expression) -> str:
    """SQL text in MySQL's dialect, inequality written as most people do."""
    text = tree.sql("mysql").replace(" <> ", " != ")
    return normalise(re.sub(r"\bNOT ([\w.`]+) (IN|LIKE|BETWEEN)\b", r"\1 NOT \2", text))


# ---- words


def name_words(name: str) -> list[str]:
    """The words of a column's name, in lower case: ``SongName``, ``song_name`` and ``Song_Name`` are song, name."""
    return [word.lower() for word in _NAME_WORD.findall(name)] or [name.lower()]


def quoted(name: str) -> str:
    """A table or column name as MySQL needs it: in backticks only where it must be."""
    return name if _PLAIN_NAME.fullmatch(name) and name.lower() not in _RESERVED else f"`{name}`"


def plain(node: exp.Expression | None) -> str:
    """An expression without table qualifiers, as short text."""
    if node is None:
        return ""
    node = node.copy()
    for column in list(node.find_all(exp.Column)):
        column.set("table", None)
    for inner in list(node.find_all(exp.Subquery, exp.Query)):
        if inner is not node and inner.parent is not None and not inner.find_ancestor(exp.Subquery):
            inner.replace(exp.var("the result of a subquery"))
    return render(node)


def words_for(item: exp.Expression) -> str:
    """A selected expression in words: ``the average Age``, ``the number of rows``, ``Name``."""
    item = item.this if isinstance(item, exp.Alias) else item
    inside = item.this if isinstance(item, exp.AggFunc) else None
    distinct = isinstance(inside, exp.Distinct)
    name = ", ".join(map(plain, inside.expressions)) if distinct else plain(inside)
    if isinstance(item, exp.Count):
        return (
            "the number of rows"
            if isinstance(inside, exp.Star)
            else (f"the number of different {name}" if distinct else f"the number of {name}")
        )
    for function, word in ((exp.Avg, "average"), (exp.Sum, "total"), (exp.Max, "highest"), (exp.Min, "lowest")):
        if isinstance(item, function):
            return f"the {word} {name}"
    return "all columns" if isinstance(item, exp.Star) else plain(item)


_COMPARED = {exp.GT: "greater than", exp.LT: "less than", exp.GTE: "at least", exp.LTE: "at most"}


def condition(node: exp.Expression) -> str:
    """A condition as short text, inequalities in the words of a question: ``Age at least 30 AND Name = 'Ann'``."""
    tree = exp.Paren(this=node.copy())
    for found in list(tree.find_all(*_COMPARED)):
        if not found.find(exp.Query):
            found.replace(exp.var(f"{plain(found.this)} {_COMPARED[type(found)]} {plain(found.expression)}"))
    return plain(tree.this)


def wanted(select: exp.Select) -> str:
    """What the query returns, in words."""
    names = listed([words_for(item) for item in select.selects])
    return f"different {names}" if select.args.get("distinct") else names


_CLAUSE = re.compile(
    r"""('[^']*'|`[^`]*`)|\b(?=(?:SELECT|FROM|JOIN|ON|WHERE|AND|OR|GROUP BY|HAVING|ORDER BY|LIMIT|UNION)\b)"""
)


def clauses(sql: str) -> list[str]:
    """The pieces of a query that can be read alone: ``SELECT AVG(Age)``, ``FROM singer``, ``WHERE Country = 'France'``.

    Those that another query or a range breaks up are left out.
    """
    pieces = _CLAUSE.sub(lambda found: found[1] or "\0", sql).split("\0")
    whole = (piece.strip() for piece in pieces if "BETWEEN" not in piece and piece.count("(") == piece.count(")"))
    return [piece for piece in whole if piece]


def join_keys(select: exp.Select) -> list[str]:
    """On what each join joins: ``Singer_ID``, or ``Code = CountryCode`` where the two columns differ in name."""
    keys = []
    for join in select.args.get("joins") or []:
        names = {c.name.lower(): c.name for c in (join.args.get("on") or exp.null()).find_all(exp.Column, bfs=False)}
        if names:
            keys.append(" = ".join(list(names.values())[:2]))
    return list(dict.fromkeys(keys))


def describe(query: Query, limit: int = 26) -> str:
    """The query as a short plan in words: what, from where, which filter, grouping and order; about `limit` words."""
    select, tables = query.select, query.tables
    if len(tables) > 1 and select.args.get("joins"):
        source = f"from {listed(tables[:3])} joined{joined_on(select)}"
    else:
        source = f"from {outer_table(query)}"
    parts = [f"{wanted(select)} {source}"]
    if isinstance(query.tree, exp.SetOperation):
        parts.append(f"combined by {query.tree.key.upper()} with a second query")
    if where := select.args.get("where"):
        parts.append(f"where {condition(where.this)}")
    if group := select.args.get("group"):
        parts.append(f"per {listed([plain(g) for g in group.expressions])}")
    if having := select.args.get("having"):
        parts.append(f"keeping groups with {condition(having.this)}")
    first = plain(select.args["limit"].expression) if select.args.get("limit") else ""
    if order := select.args.get("order"):
        by = order.expressions[0]
        down, column = bool(by.args.get("desc")), plain(by.this)
        if first == "1":
            parts.append(f"with the {'highest' if down else 'lowest'} {column}")
        else:
            parts.append(f"sorted by {column} {'descending' if down else 'ascending'}")
    if first and not (order and first == "1"):
        parts.append(f"first {first} only")
    text = parts[0]
    for part in parts[1:]:
        if len(f"{text}, {part}".split()) <= limit:
            text = f"{text}, {part}"
    return text


def joined_on(select: exp.Select) -> str:
    keys = join_keys(select)
    return f" on {listed(keys[:2])}" if keys else ""


def outer_table(query: Query) -> str:
    found = query.select.find(exp.Table)
    return (found and query._alias.get(found.alias_or_name.lower())) or (query.tables or ["the table"])[0]
