"""MySQL's dialect, wording and collation over a read-only SQLite database that an agent may send anything to.

A statement passes five gates: its first word (only reading statements), a limit on joins without conditions, sqlglot
(MySQL to SQLite), SQLite's authorizer (only reads of the database's own tables), and limits on time, rows, characters
and string length. Whatever goes
wrong becomes a `SqlError` whose text is worded as MySQL words it.
"""

from __future__ import annotations

import math
import re
import sqlite3
import threading
import time
from collections.abc import Callable

import sqlglot
from sqlglot import exp
from sqlglot.dialects.sqlite import SQLite
from sqlglot.errors import SqlglotError
from sqlglot.tokens import TokenType

from retroact_lib.envs.intercode_sql.databases import Database

MAX_SQL_CHARS = 4000
MAX_ROWS = 5000
MAX_RESULT_CHARS = 1_000_000
MAX_STRING_BYTES = 20_000
"""SQLite's REPLACE, INSTR and TRIM, and LIKE, may take the square of it, and cannot be interrupted meanwhile."""
MAX_EXPANDED_TABLES = 200
"""Tables in a statement after common table expressions are written out; SQLite copies them at every use."""

MAX_BARE_JOINS = 6
"""Joins in line before their conditions: the time that sqlglot takes doubles with each."""

_DENIED = "{} command denied to user 'agent'@'localhost'"
_TIMED_OUT = "Query execution was interrupted, maximum statement execution time exceeded"
_TOO_LARGE = f"Query execution was interrupted, the result exceeds {MAX_ROWS} rows or {MAX_RESULT_CHARS} characters"
_SYNTAX = (
    "You have an error in your SQL syntax; check the manual that corresponds to your MySQL server version for the "
    "right syntax to use near '{}' at line {}"
)
_READING = {"SELECT", "WITH"}
_WRITING = set(
    "ALTER ANALYZE ATTACH BEGIN CALL COMMIT CREATE DELETE DETACH DO DROP EXECUTE FLUSH GRANT HANDLER IMPORT INSERT "
    "KILL LOAD LOCK OPTIMIZE PRAGMA PREPARE REINDEX RELEASE RENAME REPAIR REPLACE RESET REVOKE ROLLBACK SAVEPOINT SET "
    "START TRUNCATE UNLOCK UPDATE USE VACUUM EXPLAIN".split()
)
_FIRST_WORD = re.compile(r"[\s(]*([A-Za-z]+)")
_QUOTED = r"[`'\"]?([^\s`'\".;]+)[`'\"]?"
_SHOW_TABLES = re.compile(r"SHOW\s+(?:FULL\s+)?TABLES(?:\s+(?:FROM|IN)\s+\S+)?", re.I)
_SHOW_DATABASES = re.compile(r"SHOW\s+(?:DATABASES|SCHEMAS)", re.I)
_DESCRIBE = re.compile(
    rf"(?:(?:DESC|DESCRIBE|EXPLAIN)(?:\s+TABLE)?|SHOW\s+(?:FULL\s+)?(?:COLUMNS|FIELDS)\s+(?:FROM|IN))\s+"
    rf"(?:{_QUOTED}\.)?{_QUOTED}(?:\s+(?:FROM|IN)\s+{_QUOTED})?",
    re.I,
)
_CLAUSES = (
    (exp.Join, "on clause"),
    (exp.Where, "where clause"),
    (exp.Group, "group statement"),
    (exp.Having, "having clause"),
    (exp.Order, "order clause"),
)
_COMPARISONS = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE)
_NUMERIC = (exp.Avg, exp.Sum, exp.Count, exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod, exp.Neg)
_TEXT_TYPES = {"text", "char", "varchar", "date", "datetime", "timestamp"}
_ALLOWED_ACTIONS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_DENIED_FUNCTIONS = {
    *("load_extension", "glob", "randomblob", "zeroblob", "fts3_tokenizer"),
    *("printf", "format"),  # a width of 2^31 takes seconds that nothing interrupts
    # these grow without limit
    *("json_group_array", "json_group_object", "jsonb_group_array", "jsonb_group_object", "json_pretty"),
}

Row = tuple
"""Values are None, int, str, or float rounded to four decimals."""


class SqlError(ValueError):
    """What MySQL would answer to a statement that it refuses; the text has no "Error executing query" prefix."""


class _BacktickSQLite(SQLite):
    """SQLite with names in backticks: SQLite takes an unknown name in double quotes for a string."""

    class Tokenizer(SQLite.Tokenizer):
        IDENTIFIERS = ["`", '"', ("[", "]")]


class SqlDatabase:
    """One database, open for reading. Statements run one at a time under a lock and leave nothing behind.

    `describe` is "mysql" for the six fields of MySQL's DESC, "compact" for (Field, Type), or "names" for (Field,);
    `time_limit` is in seconds and covers one statement from start to last row.
    """

    def __init__(self, database: Database, describe: str = "mysql", time_limit: float = 2.0) -> None:
        self.database = database
        self.describe = describe
        self.time_limit = time_limit
        self._lock = threading.Lock()
        self._deadline = math.inf
        self._connection = sqlite3.connect(
            f"{database.path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
        )
        self._guard()

    def execute(self, sql: str, time_limit: float | None = None) -> list[Row]:
        """Run one statement, within `time_limit` seconds if given, and return its rows.

        Raises SqlError with MySQL's words for whatever goes wrong.
        """
        statement = sql.encode("utf-8", "replace").decode("utf-8").strip().rstrip(";").rstrip()
        if len(statement) > MAX_SQL_CHARS:
            raise SqlError("Got a packet bigger than 'max_allowed_packet' bytes")
        rows = self._listing(statement)
        if rows is not None:
            return rows
        word = _FIRST_WORD.match(statement)
        if word is None or word[1].upper() not in _READING:
            if word and word[1].upper() in _WRITING | {"SHOW"}:
                raise SqlError(_DENIED.format(word[1].upper()))
            raise SqlError(_syntax_error(statement, 0))
        return self._select(statement, time_limit or self.time_limit)

    def is_listing(self, sql: str) -> bool:
        """Whether `sql` asks for a table's columns."""
        return _DESCRIBE.fullmatch(sql.strip().rstrip(";").rstrip()) is not None

    def _guard(self) -> None:
        connection = self._connection
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_STRING_BYTES)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        functions = (*_FUNCTIONS, ("like", 2, self._like), ("like", 3, self._like))
        for name, arguments, function in functions:
            connection.create_function(name, arguments, function, deterministic=True)
        connection.set_authorizer(self._authorize)
        connection.set_progress_handler(lambda: time.monotonic() > self._deadline, 100)

    def _like(self, *arguments: object) -> bool | None:
        if time.monotonic() > self._deadline:
            raise TimeoutError
        return _like(*arguments)

    def _authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if action == sqlite3.SQLITE_READ:
            name = (first or "").lower()
            counted = not second and not name.startswith(("sqlite_", "pragma_"))
            allowed = counted or name in self.database.tables
        else:
            allowed = action in _ALLOWED_ACTIONS and (second or "").lower() not in _DENIED_FUNCTIONS
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    def _listing(self, statement: str) -> list[Row] | None:
        """SHOW TABLES, SHOW DATABASES and DESC; None for any other statement."""
        if _SHOW_TABLES.fullmatch(statement):
            return [(name,) for name in self.database.tables]
        if _SHOW_DATABASES.fullmatch(statement):
            return [(self.database.name,)]
        asked = _DESCRIBE.fullmatch(statement)
        if not asked:
            return None
        schema, name = asked[1] or asked[3] or self.database.name, asked[2].lower()
        if name not in self.database.tables or schema.lower() != self.database.name.lower():
            raise SqlError(f"Table '{schema}.{name}' doesn't exist")
        columns = self.database.tables[name].columns
        if self.describe == "names":
            return [(c.name,) for c in columns]
        if self.describe == "compact":
            return [(c.name, c.type) for c in columns]
        return [(c.name, c.type, "YES" if c.nullable else "NO", c.key, c.default, c.extra) for c in columns]

    def _select(self, statement: str, seconds: float) -> list[Row]:
        if _bare_joins(statement) > MAX_BARE_JOINS:
            raise SqlError(f"Too many tables; MySQL can only use {MAX_BARE_JOINS + 1} tables in a join")
        tree, problem = None, None
        try:
            parsed = sqlglot.parse(statement, read="mysql")
            if len(parsed) == 1 and isinstance(parsed[0], exp.Query):
                tree = parsed[0]
            elif len(parsed) > 1:
                raise SqlError(_syntax_error(statement, statement.find(";") + 1))
        except (SqlglotError, RecursionError) as error:
            problem = error
        if tree is None:
            return self._select_raw(statement, problem, seconds)
        tables = self._check_tables(tree)
        query = statement
        try:
            query = self._translate(tree.copy(), tables)
        except (SqlglotError, RecursionError):
            tree = None
        try:
            return self._fetch(query, seconds)
        except sqlite3.Error as error:
            raise SqlError(self._reworded(str(error), statement, tree)) from None

    def _select_raw(self, statement: str, problem: Exception | None, seconds: float) -> list[Row]:
        """What sqlglot cannot read goes to SQLite as it is; common table expressions do not, see `_check_tables`."""
        try:
            if re.search(r"\bWITH\b", statement, re.I):
                raise sqlite3.OperationalError("syntax error")
            return self._fetch(statement, seconds)
        except sqlite3.Error as error:
            if "syntax error" in str(error) or "token" in str(error) or "incomplete" in str(error):
                raise SqlError(_syntax_error_of(problem, str(error), statement)) from None
            raise SqlError(self._reworded(str(error), statement, None)) from None

    def _check_tables(self, tree: exp.Expr) -> list[str]:
        """Names of the database's tables in `tree`, in lower case."""
        ctes = list(tree.find_all(exp.CTE))
        sizes = {cte.alias.lower(): 1 for cte in ctes}
        if len(ctes) > 20:
            raise SqlError("Too many common table expressions")
        for _ in sizes:
            for cte in ctes:
                own = cte.alias.lower()
                used = (sizes.get(t.name.lower(), 1) for t in cte.find_all(exp.Table) if t.name.lower() != own)
                sizes[own] = max(sizes[own], min(sum(used), MAX_EXPANDED_TABLES + 1))
        names, expanded = [], 0
        for table in tree.find_all(exp.Table):
            schema, name = table.db or self.database.name, table.name.lower()
            expanded += sizes.get(name, 1)
            if name in sizes and not table.db:
                continue
            if not name:
                raise SqlError(_DENIED.format("SELECT"))
            if name not in self.database.tables or schema.lower() != self.database.name.lower():
                raise SqlError(f"Table '{schema}.{name}' doesn't exist")
            table.set("db", None)
            names.append(name)
        if expanded > MAX_EXPANDED_TABLES:
            raise SqlError(f"Too many tables; MySQL can only use {MAX_EXPANDED_TABLES} tables in a join")
        return names

    def _translate(self, tree: exp.Expr, tables: list[str]) -> str:
        """SQLite's text for `tree`, with MySQL's comparison of text and numbers written out."""
        columns = [column for table in tables for column in self.database.tables[table].columns]
        texts = {c.name.lower() for c in columns if c.type.partition("(")[0] in _TEXT_TYPES}
        for node in list(tree.walk()):
            if isinstance(node, exp.Left):
                node.replace(exp.func("SUBSTR", node.this, exp.Literal.number(1), node.expression))
            elif isinstance(node, exp.Right):
                node.replace(exp.func("SUBSTR", node.this, exp.Neg(this=node.expression)))
            elif isinstance(node, exp.TsOrDsToDate):
                node.replace(node.this)
            elif isinstance(node, exp.Count) and isinstance(node.this, exp.Distinct):
                _join_distinct(node.this)
            elif isinstance(node, _COMPARISONS):
                _compare_numbers(node, "this", node.expression, texts)
                _compare_numbers(node, "expression", node.this, texts)
                _ignore_case(node)
            elif isinstance(node, exp.Between):
                _compare_numbers(node, "this", node.args["low"], texts)
            elif isinstance(node, exp.In) and node.expressions:
                _compare_numbers(node, "this", node.expressions[0], texts)
        return tree.sql(_BacktickSQLite, normalize_functions=False, unsupported_level=sqlglot.ErrorLevel.IGNORE)

    def _fetch(self, query: str, seconds: float) -> list[Row]:
        with self._lock:
            self._deadline = time.monotonic() + seconds
            rows: list[Row] = []
            characters = 0
            try:
                cursor = self._connection.execute(query)
                for row in cursor:
                    rows.append(tuple(_plain(value) for value in row))
                    characters += sum(len(value) for value in row if isinstance(value, (str, bytes)))
                    if len(rows) > MAX_ROWS or characters > MAX_RESULT_CHARS:
                        cursor.close()
                        raise SqlError(_TOO_LARGE)
            except SqlError:
                raise
            except sqlite3.OperationalError:
                if time.monotonic() > self._deadline:
                    raise SqlError(_TIMED_OUT) from None
                raise
            except (ValueError, OverflowError, sqlite3.Warning):
                raise SqlError(_syntax_error(query, 0)) from None
            finally:
                self._deadline = math.inf
            return rows

    def _reworded(self, message: str, statement: str, tree: exp.Expr | None) -> str:
        """SQLite's error message in MySQL's words."""
        for pattern, wording in _WORDINGS:
            if found := re.search(pattern, message):
                return wording.format(*found.groups(), db=self.database.name)
        if found := re.search(r"no such column: (.+)", message):
            return f"Unknown column '{found[1]}' in '{_clause(tree, found[1])}'"
        if found := re.search(r"ambiguous column name: (.+)", message):
            return f"Column '{found[1]}' in {_clause(tree, found[1])} is ambiguous"
        if found := re.search(r'near "(.*?)": syntax error', message):
            return _syntax_error(statement, _find_token(statement, found[1]))
        if found := re.search(r'unrecognized token: "(.+)"', message):
            return _syntax_error(statement, max(statement.find(found[1]), 0))
        if "number of bindings" in message:
            return _syntax_error(statement, re.search(r"[?:@$#]|$", statement).start())
        if "one statement at a time" in message:
            return _syntax_error(statement, statement.find(";") + 1)
        if "syntax error" in message or "incomplete input" in message:
            return _syntax_error(statement, len(statement))
        return message[:1].upper() + message[1:]


_WORDINGS = (
    (r"no such table: (?:main\.)?(.+)", "Unknown table '{0}'"),
    (r"no such function: (.+)", "FUNCTION {db}.{0} does not exist"),
    (r"not authorized to use function: (.+)", "FUNCTION {db}.{0} does not exist"),
    (r"access to (\w+)\.\S* is prohibited", "SELECT command denied to user 'agent'@'localhost' for table '{0}'"),
    (r"not authorized|readonly|read-only", _DENIED.format("That")),
    (r"wrong number of arguments to function (\w+)", "Incorrect parameter count in the call to native function '{0}'"),
    (r"misuse of (?:window function|aggregate)", "Invalid use of group function"),
    (r"do not have the same number of result columns", "The used SELECT statements have a different number of columns"),
    (r"(?:returns|has) (\d+) columns - expected (\d+)|row value misused", "Operand should contain 1 column(s)"),
    (r"(ORDER|GROUP) BY term out of range", "Unknown column number in '{0} BY'"),
    (r"cannot join using column (\S+)", "Unknown column '{0}' in 'from clause'"),
    (r"string or blob too big|out of memory", "Result is longer than 'max_allowed_packet' bytes"),
    (r"integer overflow", "BIGINT value is out of range"),
    (r"user-defined function raised exception", "Incorrect arguments to a function"),
)


def _clause(tree: exp.Expr | None, column: str) -> str:
    """MySQL's name of the clause where `column` stands first."""
    wanted = column.replace("`", "").lower()
    for node in tree.find_all(exp.Column) if tree is not None else ():
        full = f"{node.table}.{node.name}" if node.table else node.name
        if full.lower() != wanted:
            continue
        parent = node.parent
        while parent is not None and not isinstance(parent, exp.Select):
            for node_type, clause in _CLAUSES:
                if isinstance(parent, node_type):
                    return clause
            parent = parent.parent
        return "field list"
    return "field list"


def _bare_joins(statement: str) -> int:
    """The most joins that wait for their conditions at once, anywhere in a statement."""
    most = waiting = 0
    try:
        tokens = sqlglot.tokenize(statement, read="mysql")
    except SqlglotError:
        return 0  # the parser will say why
    for token in tokens:
        if token.token_type in (TokenType.JOIN, TokenType.STRAIGHT_JOIN):
            waiting += 1
            most = max(most, waiting)
        elif token.token_type in (TokenType.ON, TokenType.USING):
            waiting = max(0, waiting - 1)
    return most


def _syntax_error(statement: str, position: int) -> str:
    near = " ".join(statement[position : position + 80].split())
    return _SYNTAX.format(near, statement.count("\n", 0, position) + 1)


def _syntax_error_of(problem: Exception | None, message: str, statement: str) -> str:
    """The wording for a statement that neither sqlglot nor SQLite could read."""
    if found := re.search(r'near "(.*?)": syntax error', message):
        return _syntax_error(statement, _find_token(statement, found[1]))
    details = getattr(problem, "errors", None)
    if details and details[0].get("highlight"):
        rest = details[0]["highlight"] + (details[0].get("end_context") or "")
        return _syntax_error(statement, max(statement.find(rest), 0))
    quote = re.search(r"['\"`][^'\"`]*$", statement)
    return _syntax_error(statement, quote.start() if quote else len(statement))


def _find_token(statement: str, token: str) -> int:
    found = re.search(rf"(?<!\w){re.escape(token)}(?!\w)", statement, re.I)
    return found.start() if found and token else len(statement)


def _is_number(node: exp.Expr | None) -> bool:
    if isinstance(node, (exp.Paren, exp.Subquery)):
        return _is_number(node.this)
    if isinstance(node, exp.Select):
        return len(node.selects) == 1 and _is_number(node.selects[0].unalias())
    return isinstance(node, _NUMERIC) or (isinstance(node, exp.Literal) and not node.is_string)


def _compare_numbers(node: exp.Expr, side: str, other: exp.Expr, texts: set[str]) -> None:
    """MySQL compares text with a number as numbers; SQLite does so for ``column + 0``."""
    column = node.args[side]
    if isinstance(column, exp.Column) and column.name.lower() in texts and _is_number(other):
        node.set(side, exp.Paren(this=exp.Add(this=column.copy(), expression=exp.Literal.number(0))))


def _ignore_case(node: exp.Expr) -> None:
    """Text columns carry their collation; a computed text needs it spelled out."""
    if isinstance(node.expression, exp.Literal) and node.expression.is_string and not isinstance(node.this, exp.Column):
        node.set("expression", exp.Collate(this=node.expression.copy(), expression=exp.Var(this="NOCASE")))


def _join_distinct(distinct: exp.Distinct) -> None:
    """COUNT(DISTINCT a, b) counts pairs; SQLite takes one expression, so join them with a separator."""
    parts = distinct.expressions
    if len(parts) > 1:
        joined = parts[0].copy()
        for part in parts[1:]:
            separator = exp.DPipe(this=joined, expression=exp.Literal.string("\x1f"))
            joined = exp.DPipe(this=separator, expression=part.copy())
        distinct.set("expressions", [joined])


def _plain(value: object) -> object:
    """A value as it is shown and compared: floats with at most four decimals, no negative zero, no bytes."""
    if isinstance(value, float):
        return round(value, 4) + 0.0 if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value


def _like(pattern: object, text: object, escape: str = "\\") -> bool | None:
    """SQL's LIKE, each part between two % searched once; SQLite's own can take exponential time."""
    if pattern is None or text is None:
        return None
    pieces, piece, characters = [], "", iter(str(pattern))
    for character in characters:
        if character == "%":
            pieces.append(piece)
            piece = ""
        elif character == escape:
            piece += re.escape(next(characters, escape))
        else:
            piece += "." if character == "_" else re.escape(character)
    pieces.append(piece)
    text, flags = str(text), re.I | re.S
    if len(pieces) == 1:
        return re.fullmatch(pieces[0], text, flags) is not None
    first = re.compile(pieces[0], flags).match(text)
    if first is None:
        return False
    position = first.end()
    for middle in pieces[1:-1]:
        found = re.compile(middle, flags).search(text, position)
        if found is None:
            return False
        position = found.end()
    return re.compile(f"(?:{pieces[-1]})\\Z", flags).search(text, position) is not None


def _date_part(part: int) -> Callable[[object], int | None]:
    """The function that takes year (1), month (2) or day (3) out of a date's text."""

    def take(value: object) -> int | None:
        found = re.match(r"(\d{4})-(\d\d?)-(\d\d?)", str(value))
        return int(found[part]) if found else None

    return take


_FUNCTIONS = (
    ("year", 1, _date_part(1)),
    ("month", 1, _date_part(2)),
    ("day", 1, _date_part(3)),
    ("floor", 1, lambda value: None if value is None else math.floor(float(value))),
    ("ceil", 1, lambda value: None if value is None else math.ceil(float(value))),
    ("concat", -1, lambda *values: None if None in values else "".join(map(str, values))),
)
