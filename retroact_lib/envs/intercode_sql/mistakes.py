"""The slips that a person makes when writing a query.

A slip is a `Mistake`: a wrong query. Whether it really earns less is not decided here but by the environment, which
executes it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlglot import exp

from retroact_lib.envs.intercode_sql.query import (
    SPELLINGS,
    Query,
    name_words,
    outer_table,
    quoted,
    render,
)

QUERY, GUESS, LOOK, EARLY, REPEAT = "query", "guess", "look", "early", "repeat"
"""When a slip comes: the wrong query after exploring; a guess before looking; a look at the wrong table, and perhaps a
query of it; submitting before any query; a failing query that is repeated until the steps run out."""


@dataclass(frozen=True)
class Mistake:
    """One slip."""

    name: str
    """Its key in `MISTAKES`."""
    sql: str
    mode: str = QUERY


def _singular(word: str) -> str:
    if word.lower().endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if word.lower().endswith("s") and not word.lower().endswith("ss") else word


def _other_number(word: str) -> str:
    """Plural for singular, and the other way round."""
    if _singular(word) != word:
        return _singular(word)
    return word[:-1] + "ies" if word.lower().endswith("y") else word + "s"


def _wrong_table(query: Query, rng: random.Random) -> Mistake | None:
    """A name guessed before looking: singular for plural, or the other way round."""
    tree, select = query.copy()
    node = select.find(exp.Table)
    if node is None or not query.tables:
        return None
    name = outer_table(query)
    last = name.split("_")[-1]
    options = [_other_number(name), f"{_singular(last).lower()}_info"]
    if len(last) > 3 and last != name:
        options.append(last if last.lower().endswith("s") else _other_number(last))
    taken = {t.lower() for t in query.schema}
    options = [o for o in options if o.lower() not in taken]
    if not options:
        return None
    guess = rng.choice(options)
    node.set("this", exp.to_identifier(guess))
    return Mistake("wrong_table", render(tree), GUESS)


def _asked_of(query: Query, others: list[str], rng: random.Random) -> str:
    """The query asked of another table, one of `others`; '' if there is none."""
    if not others:
        return ""
    tree, _ = query.copy()
    other = rng.choice(others)
    for node in tree.find_all(exp.Table):
        node.set("this", exp.to_identifier(other))
    return render(tree)


def _other_table(query: Query, rng: random.Random) -> Mistake | None:
    """A table that exists and has the columns, but is not the one asked about."""
    if len(query.tables) != 1:
        return None
    (name,), asked = query.tables, {column.lower() for column in query.names()}
    others = [t for t in query.schema if t != name and asked <= {c.lower() for c in query.columns(t)}]
    sql = _asked_of(query, others, rng)
    return Mistake("other_table", sql) if sql else None


def _looked_elsewhere(query: Query, rng: random.Random) -> Mistake | None:
    """Another table that is there, but does not have the columns that the question asks about."""
    if len(query.tables) != 1 or not query.names():
        return None
    (name,), asked = query.tables, {column.lower() for column in query.names()}
    others = [t for t in query.schema if t != name and not asked & {c.lower() for c in query.columns(t)}]
    sql = _asked_of(query, others, rng)
    return Mistake("looked_elsewhere", sql, LOOK) if sql else None


def _missing_filter(query: Query, rng: random.Random) -> Mistake | None:
    tree, select = query.copy()
    part = "where" if select.args.get("where") else "having"
    if not select.args.get(part):
        return None
    select.set(part, None)
    return Mistake("missing_filter", render(tree))


def _select_columns(select: exp.Select) -> list[exp.Column]:
    return [column for item in select.selects for column in item.find_all(exp.Column) if not column.is_star]


def _wrong_column(query: Query, rng: random.Random) -> Mistake | None:
    tree, select = query.copy()
    options = [c for c in _select_columns(select) if query.siblings(c)]
    if not options:
        return None
    column = rng.choice(options)
    shown = {c.name.lower() for c in _select_columns(select)}
    others = [name for name in query.siblings(column) if name.lower() not in shown]
    if not others:
        return None
    wrong = rng.choice(others[:3])
    column.set("this", exp.to_identifier(wrong, quoted=quoted(wrong) != wrong))
    return Mistake("wrong_column", render(tree))


def _guessed_column(query: Query, rng: random.Random, mode: str = QUERY) -> Mistake | None:
    """A column name made up from the question's words or the table's name, without looking at the table."""
    tree, select = query.copy()
    options = [c for c in select.find_all(exp.Column) if not c.is_star and query.table_of(c)]
    if not options:
        return None
    column = rng.choice(options)
    table, right = query.table_of(column), column.name
    last = right.split("_")[-1].lower()
    guesses = [
        f"{_singular(table.split('_')[-1].lower())}_{last}",
        last if last != right.lower() else _other_number(last),
    ]
    if said := query.words.get(right):  # more often the question's words, taken for a name
        guesses += [spelling(name_words(said)) for spelling in SPELLINGS]
    taken = {c.lower() for t in query.schema for c in query.columns(t)}
    guesses = [g for g in guesses if g.lower() not in taken and g.isidentifier()]
    if not guesses:
        return None
    guess = rng.choice(guesses)
    column.set("this", exp.to_identifier(guess))
    name = "repeated_error" if mode == REPEAT else "guessed_column"
    return Mistake(name, render(tree), mode)


def _repeated_error(query: Query, rng: random.Random) -> Mistake | None:
    return _guessed_column(query, rng, REPEAT)


def _elsewhere(query: Query, rng: random.Random) -> Mistake | None:
    """A value looked for in another column than the one that holds it, so that nothing is found."""
    tree, select = query.copy()
    found = [
        node.this
        for node in (select.args["where"].find_all(exp.EQ) if select.args.get("where") else ())
        if isinstance(node.this, exp.Column) and node.expression.is_string and query.siblings(node.this)
    ]
    if not found:
        return None
    column = rng.choice(found)
    wrong = rng.choice(query.siblings(column)[:3])
    column.set("this", exp.to_identifier(wrong, quoted=quoted(wrong) != wrong))
    return Mistake("elsewhere", render(tree))


def _unquoted_value(query: Query, rng: random.Random) -> Mistake | None:
    """A text without its quotes, which MySQL takes for a column, or cannot read."""
    columns = {column.lower() for table in query.schema for column in query.columns(table)}
    values = [text for text in query.texts() if re.fullmatch(r"[\w .-]+", text) and text.lower() not in columns]
    if not values:
        return None
    value = rng.choice(values)
    return Mistake("unquoted_value", query.sql.replace(f"'{value}'", value))


def _bare_name(query: Query, rng: random.Random) -> Mistake | None:
    """A name with spaces or brackets that lacks its backticks."""
    odd = [name for name in query.names() if re.search(r"[^\w]", name) and quoted(name) in query.sql]
    if not odd:
        return None
    name = rng.choice(odd)
    return Mistake("bare_name", query.sql.replace(quoted(name), name))


def _added_filter(query: Query, rng: random.Random) -> Mistake | None:
    """A condition where the question has none: a column that is said to hold what the question calls another."""
    tree, select = query.copy()
    if any(select.args.get(part) for part in ("where", "having", "joins")) or len(query.tables) != 1:
        return None
    (table,) = query.tables
    columns = [name for name in query.columns(table) if name not in query.names()]
    if not columns or isinstance(tree, exp.SetOperation):
        return None
    column, value = rng.choice(columns), rng.choice([*query.words.values(), table])
    name = exp.column(exp.to_identifier(column, quoted=quoted(column) != column))
    select.where(exp.EQ(this=name, expression=exp.Literal.string(value)), copy=False)
    return Mistake("added_filter", render(tree))


def _syntax(query: Query, rng: random.Random) -> Mistake | None:
    """A query that does not parse: quotes, a bracket or a word left out, letters the wrong way round."""
    sql = query.sql
    bare = re.sub("`[^`]*`", lambda name: "_" * len(name[0]), sql)
    broken = [sql[:at] + sql[at + 1 :] for mark in ("'", ")") if (at := bare.rfind(mark)) > 0]
    broken += [sql.replace(word, short, 1) for word, short in _SHORTENED.items() if word in sql]
    return Mistake("syntax", rng.choice(broken or [sql.replace(" FROM ", " FORM ", 1)]))


_SHORTENED = {" GROUP BY ": " GROUP ", " ORDER BY ": " ORDER ", " IN (": " (", "SELECT DISTINCT": "DISTINCT SELECT"}


def _forgotten_distinct(query: Query, rng: random.Random) -> Mistake | None:
    tree, select = query.copy()
    if select.args.get("distinct"):
        select.set("distinct", None)
    else:
        inner = next((d for item in select.selects for d in item.find_all(exp.Distinct)), None)
        if inner is None:
            return None
        inner.replace(inner.expressions[0])
    return Mistake("forgotten_distinct", render(tree))


_SWAPS = {exp.Max: exp.Min, exp.Min: exp.Max, exp.Avg: exp.Sum, exp.Sum: exp.Avg}


def _wrong_aggregate(query: Query, rng: random.Random) -> Mistake | None:
    tree, select = query.copy()
    found = [f for item in select.selects for f in item.find_all(*_SWAPS)]
    if not found:
        return None
    node = rng.choice(found)
    node.replace(_SWAPS[type(node)](this=node.this.copy()))
    return Mistake("wrong_aggregate", render(tree))


def _missing_count(query: Query, rng: random.Random) -> Mistake | None:
    tree, select = query.copy()
    if len(select.selects) != 1 or not isinstance(select.selects[0].unalias(), exp.Count) or select.args.get("group"):
        return None
    select.set("expressions", [exp.Star()])
    return Mistake("missing_count", render(tree))


def _wrong_direction(query: Query, rng: random.Random) -> Mistake | None:
    tree, select = query.copy()
    order = select.args.get("order")
    if not order:
        return None
    first = order.expressions[0]
    down = bool(first.args.get("desc"))
    first.set("desc", not down)
    first.set("nulls_first", down)  # as MySQL sorts, so that no CASE for empty values is written out
    return Mistake("wrong_direction", render(tree))


def _missing_limit(query: Query, rng: random.Random) -> Mistake | None:
    tree, select = query.copy()
    if not select.args.get("limit"):
        return None
    select.set("limit", None)
    return Mistake("missing_limit", render(tree))


def _too_many_columns(query: Query, rng: random.Random) -> Mistake | None:
    tree, select = query.copy()
    if select.args.get("group") or select.find(exp.AggFunc) or isinstance(tree, exp.SetOperation):
        return None
    select.set("expressions", [exp.Star()])
    select.set("distinct", None)
    return Mistake("too_many_columns", render(tree))


def _missing_column(query: Query, rng: random.Random) -> Mistake | None:
    tree, select = query.copy()
    if len(select.selects) < 2 or isinstance(tree, exp.SetOperation):
        return None
    items = list(select.selects)
    items.pop(rng.randrange(len(items)))
    select.set("expressions", items)
    return Mistake("missing_column", render(tree))


_OPERATORS = {
    exp.GT: (exp.LT, exp.GTE),
    exp.LT: (exp.GT, exp.LTE),
    exp.GTE: (exp.GT, exp.LTE),
    exp.LTE: (exp.LT, exp.GTE),
    exp.EQ: (exp.NEQ,),
    exp.NEQ: (exp.EQ,),
}


def _wrong_operator(query: Query, rng: random.Random) -> Mistake | None:
    tree, select = query.copy()
    clauses = [select.args[name] for name in ("where", "having") if select.args.get(name)]
    found = [node for clause in clauses for node in clause.find_all(*_OPERATORS) if not node.find(exp.Query)]
    if not found:
        return None
    node = rng.choice(found)
    wrong = rng.choice(_OPERATORS[type(node)])(this=node.this.copy(), expression=node.expression.copy())
    node.replace(wrong)
    return Mistake("wrong_operator", render(tree))


def _forgotten_join(query: Query, rng: random.Random) -> Mistake | None:
    tree, select = query.copy()
    joins = select.args.get("joins")
    if not joins or isinstance(tree, exp.SetOperation):
        return None
    select.set("joins", None)
    for column in tree.find_all(exp.Column):
        column.set("table", None)
    for table in select.find_all(exp.Table):
        table.set("alias", None)
    return Mistake("forgotten_join", render(tree))


def _wrong_join_key(query: Query, rng: random.Random) -> Mistake | None:
    tree, select = query.copy()
    found = [
        c
        for join in select.args.get("joins") or []
        if join.args.get("on")
        for c in join.args["on"].find_all(exp.Column)
        if query.siblings(c)
    ]
    if not found:
        return None
    column = rng.choice(found)
    wrong = rng.choice(query.siblings(column)[:3])
    column.set("this", exp.to_identifier(wrong, quoted=quoted(wrong) != wrong))
    return Mistake("wrong_join_key", render(tree))


def _missing_group(query: Query, rng: random.Random) -> Mistake | None:
    tree, select = query.copy()
    if not select.args.get("group"):
        return None
    select.set("group", None)
    return Mistake("missing_group", render(tree))


def _missing_half(query: Query, rng: random.Random) -> Mistake | None:
    if not isinstance(query.tree, exp.SetOperation):
        return None
    return Mistake("missing_half", render(query.select))


def _submitted_early(query: Query, rng: random.Random) -> Mistake | None:
    return Mistake("submitted_early", "", EARLY)


MISTAKES: dict[str, Callable[[Query, random.Random], Mistake | None]] = {
    "wrong_table": _wrong_table,
    "other_table": _other_table,
    "looked_elsewhere": _looked_elsewhere,
    "missing_filter": _missing_filter,
    "wrong_column": _wrong_column,
    "guessed_column": _guessed_column,
    "repeated_error": _repeated_error,
    "elsewhere": _elsewhere,
    "unquoted_value": _unquoted_value,
    "bare_name": _bare_name,
    "added_filter": _added_filter,
    "syntax": _syntax,
    "forgotten_distinct": _forgotten_distinct,
    "wrong_aggregate": _wrong_aggregate,
    "missing_count": _missing_count,
    "wrong_direction": _wrong_direction,
    "missing_limit": _missing_limit,
    "too_many_columns": _too_many_columns,
    "missing_column": _missing_column,
    "wrong_operator": _wrong_operator,
    "forgotten_join": _forgotten_join,
    "wrong_join_key": _wrong_join_key,
    "missing_group": _missing_group,
    "missing_half": _missing_half,
    "submitted_early": _submitted_early,
}
"""Every slip by name; each function returns None where it does not apply."""

WEIGHTS = {
    "repeated_error": 0.25,
    "submitted_early": 0.5,
    "unquoted_value": 0.25,
    "syntax": 0.5,
    "guessed_column": 2.0,
    "looked_elsewhere": 4.0,
    "bare_name": 3.0,
    "added_filter": 2.0,
}
"""Weights other than 1: slips that make long transcripts, or whose remedy a policy takes for that of others, come less
often, and those that a policy makes most come more often."""


def draw_mistake(query: Query, rng: random.Random, avoid: Sequence[str] = ()) -> Mistake | None:
    """Draw one slip that applies to `query`, none of those in `avoid`; None if there is none."""
    gold = render(query.tree).lower()
    found = [slip(query, rng) for name, slip in MISTAKES.items() if name not in avoid]
    usable = [m for m in found if m and m.sql.lower() != gold]
    if not usable:
        return None
    return rng.choices(usable, weights=[WEIGHTS.get(m.name, 1.0) for m in usable])[0]
