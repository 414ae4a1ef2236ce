"""What an observation shows, to whoever knows the question: an error and its cause, no rows, rows of another shape.

An agent that reads its observations can tell these and mend them within the trial. It cannot tell a wrong number from
the right one, so such a slip is found out by the evaluator alone.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from sqlglot import exp

from retroact_lib.envs.intercode_sql.query import Query, name_words, wanted

TABLE, COLUMN, SYNTAX, ERROR, EMPTY, SHAPE, ABSENT = "table", "column", "syntax", "error", "empty", "shape", "absent"
"""The kinds of `Problem`: a table or a column that does not exist, a query that does not parse, another error, a
result without rows or values, rows of another shape than the question asks for, a table without what it asks about."""

_ERRORS = {
    TABLE: re.compile(r"Table '(?:[^'.]*\.)?([^']*)' doesn't exist"),
    COLUMN: re.compile(r"Unknown column '(?:[^'.]*\.)?([^']*)' in"),
    SYNTAX: re.compile(r"You have an error in your SQL syntax;.* near '(.*?)' ?(?:at line|$)"),
}
_CUT = re.compile(r"\.\.\. \((\d+) rows?\)\]$")


@dataclass(frozen=True)
class Problem:
    """What is wrong with a result, as far as it shows."""

    kind: str
    """One of the kinds above."""
    words: str
    """TABLE and COLUMN: the name that does not exist. SYNTAX: the text near the error. ABSENT: what the question calls
    the column that is not there. Others: a whole sentence."""


def problem(observation: str, asked: Query) -> Problem | None:
    """What an observation shows to be wrong, given what the question asks for; None where nothing does.

    Of the query `asked` only the shape counts, which the question tells too: how many columns, one number or rows,
    whether rows may repeat, and how many rows at most.
    """
    if is_error(observation):
        for kind, pattern in _ERRORS.items():
            if found := pattern.search(observation):
                return Problem(kind, " ".join(found[1].split()[:4]) if kind == SYNTAX else found[1])
        return Problem(ERROR, f"The query failed: {_cause(observation)}.")
    rows = rows_of(observation)
    if rows is None:
        return None
    if all(value is None for row in rows for value in row):
        return Problem(EMPTY, "The result is empty.")
    if rows == [(0,)]:
        return Problem(EMPTY, "The result is 0.")
    cut = _CUT.search(observation)
    odd = _odd_shape(rows, int(cut[1]) if cut else len(rows), asked.select)
    return Problem(SHAPE, odd) if odd else None


def absent(columns: list[str], asked: Query) -> Problem | None:
    """What a table with these columns lacks of those that the question asks about; None if it has them all."""
    there = {name.lower() for name in columns}
    wanted_columns = [column.name for column in asked.tree.find_all(exp.Column) if not column.is_star]
    missing = next((name for name in wanted_columns if name.lower() not in there), None)
    return Problem(ABSENT, asked.words.get(missing) or " ".join(name_words(missing))) if missing else None


def is_error(observation: str) -> bool:
    """Whether the observation is an error message."""
    return observation.lstrip().lower().startswith("error")


def _cause(observation: str) -> str:
    """The first words of an error's text."""
    return " ".join(observation.partition("query:")[2].split()[:10]).rstrip(".") or "there is no reason given"


def rows_of(observation: str) -> list[tuple] | None:
    """The rows that an observation shows; of one that was cut, those that are whole. None if it shows no rows."""
    text = _CUT.sub("]", observation.strip())
    try:
        rows = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return rows if isinstance(rows, list) and all(isinstance(row, tuple) for row in rows) else None


def _odd_shape(rows: list[tuple], count: int, asked: exp.Select) -> str:
    """A sentence on `count` rows, `rows` of them shown, that cannot be what the question asks for; '' if they can."""
    items = asked.selects
    number = not asked.args.get("group") and all(isinstance(item.unalias(), exp.AggFunc) for item in items)
    if number and (count > 1 or len(rows[0]) != len(items)):
        return f"These are rows, and the question asks for {wanted(asked)}."
    if not any(item.is_star for item in items):
        if len(rows[0]) > len(items):
            return f"These rows hold more than {wanted(asked)}."
        if len(rows[0]) < len(items):
            return f"These rows hold less than {wanted(asked)}."
    if asked.args.get("distinct"):
        twice = next((row for i, row in enumerate(rows) if row in rows[:i]), None)
        if twice:
            return f"{', '.join(map(str, twice))} comes more than once."
    if limit := asked.args.get("limit"):
        most = int(limit.expression.name)
        if count > most:
            return f"These are more rows than the {'one' if most == 1 else most} that the question asks for."
    return ""
