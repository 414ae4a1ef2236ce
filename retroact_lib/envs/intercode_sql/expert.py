"""The scripted expert for InterCode-SQL: explores, asks, reads the answer, and asks again where it shows a slip."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Generator, Sequence

from sqlglot import exp

from retroact_lib.envs.base import Env, Task, listed
from retroact_lib.envs.intercode_sql.mistakes import EARLY, GUESS, LOOK, REPEAT, Mistake, draw_mistake
from retroact_lib.envs.intercode_sql.query import (
    Query,
    clauses,
    condition,
    describe,
    join_keys,
    joined_on,
    name_words,
    normalise,
    plain,
    quoted,
    wanted,
)
from retroact_lib.envs.intercode_sql.reading import (
    ABSENT,
    COLUMN,
    EMPTY,
    SYNTAX,
    TABLE,
    Problem,
    absent,
    is_error,
    problem,
    rows_of,
)
from retroact_lib.experts.base import Expert, Move, Session, Steps
from retroact_lib.trajectories import Trial, Turn

SECOND_SLIP = 0.2
"""Chance that a slip is followed by a second one: in the same trial if the first is mended there, else in the next."""
BLIND = 0.1
"""Chance that somebody who makes up a column has not looked at the table."""
SEEN = 0.75
"""Chance that somebody who looked at the wrong table sees so from its columns, before any query."""
MOST_NAMES = 8
"""A thought lists the tables that an observation showed if there are at most this many."""

_LOOK = ("I start with the names of the tables.", "First I list the tables.")
_RECALL = ("The reflection tells me to {plan}. I start with the tables.", "Now I will {plan}. First I list the tables.")
_SKIP = ("From the reflection I know that I need {tables}. I check the columns of {table}.",)
_FIRST = ("I need {tables}. I check the columns of {table}.",)
_NEXT = ("I also need {table}. I check its columns.",)
_PLAN = ("I need {d}.", "Now I can write the query: {d}.")
_REPLAN = ("As the reflection says, I need {d}.",)
_VALUE = ("The result is {v}: {w}. I submit.", "{v} is {w}, as the question asks, so I submit.")
_ROWS = ("The rows hold {w} and begin with {v}, so I submit.", "The first row is {v}. The rows hold {w}. I submit.")
_EMPTY_GOLD = ("No rows match, so the answer is empty and I submit it.",)
_NO_BETTER = ("The query failed, and I have no better one. I submit without an answer.",)
_GUESS = ("There should be a table {table}, so I query it directly.", "I think the table is {table}. I query it.")
_AFTER = ("{because} I ask again.", "{because} So I write the query again.")
_GUESS_DESC = ("The table should be {table}. I check its columns.",)
_AGAIN = ("That failed, but the query looks right to me. I try again.", "Maybe it works if I run it once more.")
_EARLY = ("This description of the table should be enough, so I submit.", "I have seen the columns. I submit this.")
_VALUES_AFTER = ("{problem} I look at the values of {column}.", "Nothing was found. I look at the values of {column}.")
_REFLECTIONS = (
    "I {did}. Next time I will {plan}.",
    "My mistake: I {did}. Plan: {plan}.",
    "The answer was wrong because I {did}. I should {plan} before I submit.",
    "I {did}. In the next attempt I will {plan}, check the rows and then submit.",
    "I should not have submitted yet: I {did}. The fix is to {plan}.",
)


class ScriptedSQLExpert(Expert):
    """Knows the gold SQL and still explores as a careful person would, or slips as a hasty one does.

    A careful trial lists the tables, looks at the columns of those that matter, runs the gold query and submits. A slip
    is a wrong query. Where its result shows that something is wrong (`reading.problem`), the expert looks at what the
    message points to and asks again, unless the slip is to repeat the error. Where nothing shows, it submits, and the
    trial fails. Its thoughts come from the question, what it has seen, and the query it is about to run.
    """

    def session(
        self, env: Env, task: Task, rng: random.Random, mistake_rate: float, max_trials: int, max_steps: int
    ) -> Session:
        for name in ("db", "gold"):
            if not isinstance(task.meta.get(name), str):
                raise ValueError(f"task {task.id} has no text {name!r} in its meta, which the SQL expert needs")
        schema, words = env.schema(task.meta["db"]), task.meta.get("words")  # type: ignore[attr-defined]
        query = Query(task.meta["gold"], schema, words)
        return _SQLSession(task, query, rng, mistake_rate, max_steps)


class _SQLSession(Session):
    def __init__(self, task: Task, query: Query, rng: random.Random, mistake_rate: float, max_steps: int) -> None:
        self.query, self.rng, self.max_steps = query, rng, max_steps
        nouns = task.meta.get("nouns", {}).get(query.tables[0] if query.tables else "", ())
        self.noun = nouns[0] if any(noun.lower() in task.question.lower() for noun in nouns) else ""
        """What the question calls the rows of the first table, in the plural."""
        self.slips: list[Mistake] = []
        """The slips to come."""
        if rng.random() < mistake_rate and (first := draw_mistake(query, rng)):
            self.slips.append(first)
            again = rng.random() < SECOND_SLIP
            if again and (second := draw_mistake(query, rng, avoid=[first.name, "submitted_early", "repeated_error"])):
                self.slips.append(second)
        self.plan = ""
        """What the last reflection plans."""

    def attempt(self, reflections: list[str]) -> Steps:
        return _Attempt(self, reflections, self.plan).steps()

    def take_over(self, turns: Sequence[Turn]) -> Steps:
        attempt = _Attempt(self, [])
        for turn in turns:
            attempt.note(turn.action, turn.observation)
        return attempt.go_on(turns[-1])

    def reflect(self, trial: Trial) -> str:
        attempt = _Attempt(self, [])
        for turn in trial.turns:
            attempt.note(turn.action, turn.observation)
        did, self.plan = attempt.went_wrong(trial.turns)
        submitted = bool(trial.turns) and trial.turns[-1].action == "submit"
        templates = _REFLECTIONS if submitted else _REFLECTIONS[:2]  # the others speak of submitting
        return self.say(templates, did=did, plan=self.plan)

    def judge(self, trial: Trial) -> str:
        return self.reflect(trial)

    def say(self, templates: tuple[str, ...], **words: str) -> str:
        return self.rng.choice(templates).format(**words)


class _Attempt:
    """One trial: what has been looked at, and what comes next."""

    def __init__(self, session: _SQLSession, reflections: list[str], plan: str = "") -> None:
        self.of, self.query, self.say = session, session.query, session.say
        self.tables = session.query.tables[:3]
        self.reflections, self.plan = reflections, plan
        self.used = 0
        self.listed: list[str] = []
        """The tables that SHOW TABLES showed."""
        self.columns: dict[str, list[str]] = {}
        """Table -> the columns that DESC showed."""
        self.asked = False
        """Whether a query has been run."""
        self.instead = ""
        """What the next query has in place of a name that does not exist."""

    def steps(self) -> Steps:
        because = ""
        while self.of.slips:
            slip = self.of.slips.pop(0)
            seen, found = yield from self._slip(slip, because)
            if found is None:
                yield from self._do(self._check(seen, slip.sql), "submit", slip=True)
                return
            because = yield from self._look_again(found, slip.sql)
        yield from self._answer(because)

    def go_on(self, last: Turn) -> Steps:
        """The steps after somebody else's."""
        found, sql = self._found(last), _sql(last.action)
        if not found and normalise(sql).lower() == self.query.sql.lower():
            yield from self._do(self._check(last.observation, sql), "submit")
            return
        because = (yield from self._look_again(found, sql)) if found else ""
        yield from self._answer(because, plan=not found or not self._is_mended(found, sql))

    def _found(self, last: Turn) -> Problem | None:
        """What a step showed to be wrong: an error, the wrong table's columns, a result that cannot be the answer."""
        sql = _sql(last.action)
        if is_error(last.observation) or _asks(sql):
            return problem(last.observation, self.query)
        columns = self.columns.get(_described(sql))
        return absent(columns, self.query) if columns and _described(sql) not in self.tables else None

    def _answer(self, because: str, plan: bool = False) -> Steps:
        """Look at what was not looked at, run the gold query, and submit; say its `plan` after `because` too."""
        if not self.used:
            yield from self._explore(self.tables)
        because = yield from self._look_at_the_rest(because)
        if because and self.asked and not plan:
            thought = self.say(_AFTER, because=f"{because} {self.instead}".strip())
        else:
            links = self._links(self.query) if not (because and self.asked) else ""
            told = self.reflections and not self.plan.startswith(("look at", "list"))
            planned = self.say(_REPLAN if told else _PLAN, d=describe(self.query))
            thought = " ".join(filter(None, (because, links, planned)))
        seen = yield from self._do(thought, f"execute[{self.query.sql}]")
        yield from self._do(self._check(seen, self.query.sql), "submit")

    def _do(self, thought: str, action: str, slip: bool = False) -> Generator[Move, str, str]:
        """One step; keeps what it showed."""
        seen = yield Move(thought, action, slip)
        self.note(action, seen)
        return seen

    def note(self, action: str, seen: str) -> None:
        """Remember a step and what it showed."""
        self.used += 1
        names, sql = [str(row[0]) for row in rows_of(seen) or []], _sql(action)
        if _lists_tables(sql):
            self.listed = names
        elif names and (table := _described(sql)):
            self.columns[table] = names
        self.asked = self.asked or _asks(sql)

    def _left(self) -> int:
        return self.of.max_steps - self.used

    # ---- judging

    def went_wrong(self, turns: Sequence[Turn]) -> tuple[str, str]:
        """Why a trial of these `turns` failed, and what to do next time.

        Both name only tables that the trial has shown: one that was not looked at is to be looked at.
        """
        queries = [turn for turn in turns if _asks(_sql(turn.action))]
        last = queries[-1] if queries else None
        sql = _sql(last.action) if last else ""
        if unseen := [table for table in self.tables if table not in self.columns]:
            return self._looked_past(unseen, _first_table(sql))
        plan = f"ask for {describe(self.query, 20)}"
        if last is None:
            return "did not run a query", plan
        if not is_error(last.observation):
            differs = self._other_than_meant(sql, plan)
            looked_on = last is not [turn for turn in turns if turn.action != "submit"][-1]
            right = "did something else after the right query", "run it again and submit"
            return differs or (right if looked_on else ("gave an answer that the evaluator did not accept", plan))
        again = " again and again" if len(queries) > 1 and queries[-2].action == last.action else ""
        if bare := self._bare(sql):
            return f"ran a query that fails{again}. {bare.rstrip('.')}", plan
        found = problem(last.observation, self.query)
        if found and found.kind == TABLE:
            return f"queried {found.words}{again}, which is no table", f"query {listed(self.tables)}"
        if found and found.kind == COLUMN:
            column, table = self._meant(found.words, sql)
            if column and column.lower() != found.words.lower():
                words, has = self.query.words.get(column), [name.lower() for name in self.query.columns(table)]
                right = f"{quoted(column)} for the {words}" if words else quoted(column)
                where = "there" if not table or found.words.lower() in has else f"of {table}"
                return f"used {found.words}{again}, which is no column {where}", f"use {right}"
        return f"ran a query that fails{again}", plan

    def _looked_past(self, unseen: list[str], queried: str) -> tuple[str, str]:
        """What a trial that did not look at the tables `unseen` did, and what to do next time."""
        tables, there = ([name.lower() for name in names] for names in (self.tables, self.query.schema))
        did = f"did not look at {listed(unseen)}" if self.listed else "did not list the tables"
        if queried and queried.lower() not in there:
            did = f"queried {queried}, which is no table"
        elif queried and queried.lower() not in tables:
            about = f", but the question is about {self.of.noun}"
            did = f"queried {queried}{about if self.of.noun and self.tables[0] in unseen else ''}"
        return did, f"look at {listed(unseen)}" if self.listed else "list the tables"

    def _other_than_meant(self, sql: str, plan: str) -> tuple[str, str] | None:
        """How a query that ran differs from the one that was meant; `plan` where it differs in several ways."""
        pairs = zip(_done(_parsed(sql, self.query)), _done(self.query), strict=True)
        others = [(did, meant) for did, meant in pairs if did.lower() != meant.lower()]
        if not others:
            return None
        did, (verb, rest) = others[0][0], others[0][1].split(" ", 1)
        return did, plan if len(others) > 1 else f"{_TO_DO[verb]} {rest}"

    # ---- looking

    def _explore(self, tables: list[str]) -> Steps:
        """List the tables, look at those that matter; as much as leaves two steps for query and submit."""
        skip = bool(tables) and all(_names(self.reflections[-1:], t) for t in tables) and self.of.rng.random() < 0.3
        words, told = (
            {"tables": listed(tables), "plan": _short(self.plan, 12)},
            self.plan not in ("", "list the tables"),
        )
        todo = [] if skip else [(self.say(_RECALL if told else _LOOK, **words), "execute[SHOW TABLES]")]
        for i, table in enumerate(tables):
            templates = _NEXT if i else _SKIP if skip else self._first()
            todo.append((self.say(templates, table=table, **words), f"execute[{_desc(table)}]"))
        room = max(0, self._left() - 2)
        for thought, action in todo[max(0, len(todo) - room) :]:
            yield from self._do(thought, action)

    def _first(self) -> tuple[str, ...]:
        """How the expert comes to the first table: by what the question calls its rows, where that is known."""
        return tuple(f"The question is about {self.of.noun}. {text}" for text in _FIRST) if self.of.noun else _FIRST

    def _links(self, query: Query) -> str:
        """Which column is meant by which words of the question: ``The average attendance is Average.``

        How many there are is COUNT(*), which is no column.
        """
        meant, used = self.query.names(), query.names()
        pairs = zip(meant, used, strict=True) if len(meant) == len(used) else ()
        words = self.query.words
        said = [f"the {words[column]} is {quoted(name)}" for column, name in pairs if column in words]
        counts = (item.unalias() for item in query.select.selects)
        if any(isinstance(count, exp.Count) and isinstance(count.this, exp.Star) for count in counts):
            noun = self.of.noun if len(query.tables) == 1 else ""  # with joins, it need not be the first table's rows
            said.insert(0, f"the number of {noun or 'rows'} is COUNT(*)")
        text = " and ".join(said[:2])
        return f"{text[:1].upper()}{text[1:]}." if text else ""

    def _look_again(self, found: Problem, sql: str) -> Generator[Move, str, str]:
        """Look at what a problem of the query `sql` points to. Returns the reason for the next query."""
        if found.kind == TABLE:
            return (yield from self._find_table(found.words))
        if found.kind == COLUMN:
            return (yield from self._find_column(found.words, sql))
        if found.kind == ABSENT:
            return (yield from self._look_at_the_rest(f"{_first_table(sql)} has no {found.words}."))
        if found.kind == SYNTAX:
            near = f"The syntax is wrong near {found.words}." if found.words else "The query breaks off at its end."
            return f"{near} {self._bare(sql)}".strip()
        if found.kind == EMPTY:
            asked = _parsed(sql, self.query)
            tried, keys = join_keys(asked.select), join_keys(self.query.select)
            if keys and tried and tried != keys:
                return f"Nothing joins on {tried[0]}. {listed(self.tables)} share {keys[0]}."
            if asked.tree.find(exp.Where) and not self.query.tree.find(exp.Where, exp.Having):
                return f"{found.words} The question names no condition."
            return (yield from self._find_value(found.words))
        return found.words

    def _find_table(self, name: str) -> Generator[Move, str, str]:
        """List the tables unless that was done, and look at those that matter and were not looked at."""
        said = f"There is no table {name}."
        if not self.listed and self._left() > 2:
            yield from self._do(f"{said} I list the tables.", "execute[SHOW TABLES]")
            said = ""
        elif 0 < len(self.listed) <= MOST_NAMES:
            said = f"There is no table {name}: the tables are {listed(self.listed)}."
        said = yield from self._look_at_the_rest(said)
        return f"{said} I need {listed(self.tables)}." if said else ""

    def _find_column(self, name: str, sql: str) -> Generator[Move, str, str]:
        """Look at the tables not seen yet; say which column there is instead."""
        said = yield from self._look_at_the_rest(f"There is no column {name}.")
        if bare := self._bare(sql):
            return f"{said} {bare}".strip()
        column, table = self._meant(name, sql)
        if column not in self.columns.get(table, []):
            return said
        right, words = quoted(column), self.query.words.get(column)
        if column.lower() == name.lower():
            there = f"{table} has it"
        else:
            there = f"the {words} is {right} of {table}" if words else f"{table} has {right}"
            piece = next((p for p in clauses(self.query.sql) if _has(p, right) and p not in sql), "")
            self.instead = f"I write {piece}." if piece else f"In place of {name} I write {right}."
        return f"{said.rstrip('.')} there, but {there}." if said else f"I see that {there}."

    def _bare(self, sql: str) -> str:
        """Which name or text stands in `sql` without the backticks or quotes that it needs; '' if none does."""
        for name in self.query.names():
            if quoted(name) != name and re.search(rf"(?<![\w`]){re.escape(name)}(?![\w`])", sql, re.I):
                return f"I have to write {quoted(name)} in backticks."
        for text in self.query.texts():
            in_quotes = any(f"{mark}{text}{mark}".lower() in sql.lower() for mark in "'\"")
            if not in_quotes and _has(sql, text):
                return f"The value '{text}' needs quotes."
        return ""

    def _look_at_the_rest(self, said: str) -> Generator[Move, str, str]:
        """Look at the columns of the tables that matter, as far as two steps are left for query and submit.

        Returns what of `said` is still to be said.
        """
        for table in [table for table in self.tables if table not in self.columns]:
            if self._left() > 2:
                more = any(table in self.columns for table in self.tables)
                thought = self.say(_NEXT if more else self._first(), table=table, tables=listed(self.tables))
                yield from self._do(f"{said} {thought}".strip(), f"execute[{_desc(table)}]")
                said = ""
        return said

    def _meant(self, name: str, sql: str) -> tuple[str, str]:
        """The gold column most like `name`, if possible one that `sql` lacks, and its table."""
        columns = [c for c in self.query.tree.find_all(exp.Column, bfs=False) if not c.is_star]
        if not columns:
            return "", self.tables[0] if self.tables else ""
        gold, tried = _columns(self.query.sql, self.query), _columns(sql, self.query)
        same = [c for c in columns if c.name.lower() == name.lower() and tried[name.lower()] <= gold[name.lower()]]
        lacking = [c for c in columns if tried[c.name.lower()] < gold[c.name.lower()]]
        like = _stems(name)
        found = max(
            same or lacking or columns,
            key=lambda c: len(like & (_stems(c.name) | _stems(self.query.words.get(c.name, "")))),
        )
        return found.name, self.query.table_of(found) or ""

    def _is_mended(self, found: Problem, sql: str) -> bool:
        """Whether `sql` becomes the gold query with another column in place of one, or with backticks and quotes."""
        tried = _unmarked(normalise(sql))
        if found.kind == COLUMN and not self._bare(sql):
            wrong, right = found.words.lower(), self._meant(found.words, sql)[0].lower()
            tried = re.sub(rf"(?<!\w){re.escape(wrong)}(?!\w)", lambda _: right, tried)
        return tried == _unmarked(self.query.sql)

    def _find_value(self, words: str) -> Generator[Move, str, str]:
        """Look at the values of the column that holds what the question names."""
        where = self.query.select.args.get("where")
        tests = [node for node in where.find_all(exp.EQ) if isinstance(node.this, exp.Column)] if where else []
        table = self.query.table_of(tests[0].this) if tests else None
        if not table or self._left() <= 2:
            return words
        column, value = tests[0].this, tests[0].expression.name
        name = column.sql("mysql").split(".")[-1]
        look = f"SELECT DISTINCT {name} FROM {quoted(table)} LIMIT 5"
        thought = self.say(_VALUES_AFTER, problem=words, column=column.name)
        seen = yield from self._do(thought, f"execute[{look}]")
        values = [str(row[0]) for row in rows_of(seen) or []]
        shown = [value] if value in values else values[:2]
        return f"{column.name} holds {listed(shown)}." if shown else words

    # ---- asking

    def _slip(self, slip: Mistake, because: str) -> Generator[Move, str, tuple[str, Problem | None]]:
        """The steps up to the slip and the slip; returns what it showed, and what is wrong with that."""
        action, fresh = f"execute[{slip.sql}]", not because and not self.columns
        if slip.mode == GUESS and fresh:
            table = _first_table(slip.sql)
            if self.of.rng.random() < 0.5:  # after the names of the tables, at the columns
                yield from self._explore([])
                thought, action = self.say(_GUESS_DESC, table=table), f"execute[{_desc(table)}]"
            else:
                thought = self.say(_GUESS, table=table)
            seen = yield from self._do(thought, action, slip=True)
            return seen, problem(seen, self.query)
        if slip.mode == LOOK and fresh:
            yield from self._explore([])
            other = _first_table(slip.sql)
            thought = self.say(_FIRST, table=other, tables=other)
            seen = yield from self._do(thought, f"execute[{_desc(other)}]", slip=True)
            if self.of.rng.random() < SEEN and (found := absent(self.columns.get(other, []), self.query)):
                return seen, found
        elif fresh:
            made_up = slip.name in ("guessed_column", "repeated_error") and self.of.rng.random() < BLIND
            looked = [] if made_up else self.tables[:1] if slip.name == "forgotten_join" else self.tables
            yield from self._explore(looked)
        if slip.mode == EARLY:
            return (yield from self._do(self.say(_EARLY), "submit", slip=True)), None
        wrong = _parsed(slip.sql, self.query)
        plan = self.say(_PLAN, d=describe(wrong))
        seen = yield from self._do(f"{because or self._links(wrong)} {plan}".strip(), action, slip=True)
        while slip.mode == REPEAT:  # until the environment or the step limit ends the trial
            seen = yield from self._do(self.say(_AGAIN), action, slip=True)
        return seen, problem(seen, self.query)

    def _check(self, seen: str, sql: str) -> str:
        """The thought before submitting: what the result shows."""
        if is_error(seen):
            return self.say(_NO_BETTER)
        rows, what = rows_of(seen), wanted(_parsed(sql, self.query).select)
        if not rows:
            return self.say(_EMPTY_GOLD)
        first = _short(", ".join(map(str, rows[0])), 8)
        return self.say(_ROWS if len(rows) > 1 else _VALUE, w=what, v=first)


def _parsed(sql: str, query: Query) -> Query:
    """A statement as a query; in its place the query that was meant, if it does not parse."""
    try:
        return Query(sql, query.schema, query.words)
    except ValueError:
        return query


_TO_DO = {"asked": "ask", "kept": "keep", "made": "make", "queried": "query", "took": "take"}


def _done(query: Query) -> tuple[str, ...]:
    """What a query asked for, of which tables, under which conditions and in which groups and order."""
    select, limit = query.select, query.select.args.get("limit")
    where, group, having, order = (select.args.get(name) for name in ("where", "group", "having", "order"))
    first = plain(limit.expression) if limit else ""
    some = "took only one row" if first == "1" else f"took only the first {first} rows"
    taken = some if first else "took all rows"
    if order:
        by, down = plain(order.expressions[0].this), order.expressions[0].args.get("desc")
        one = f"took the one with the {'highest' if down else 'lowest'} {by}"
        taken = one if first == "1" else f"{taken} by {'descending' if down else 'ascending'} {by}"
    both = f"asked a second query too, combined by {query.tree.key.upper()}"
    return (
        f"asked for {wanted(select)}",
        f"queried {listed(sorted(query.tables))}{joined_on(select)}",
        f"kept only the rows with {condition(where.this)}" if where else "kept the rows without any condition",
        f"made groups per {listed([plain(g) for g in group.expressions])}" if group else "made no groups",
        f"kept only groups with {condition(having.this)}" if having else "kept all groups",
        taken,
        both if isinstance(query.tree, exp.SetOperation) else "asked only one query",
    )


def _sql(action: str) -> str:
    """The statement of an action; '' where it has none."""
    found = re.fullmatch(r"execute\s*\[(.*)\]", action.strip(), re.I | re.S)
    return found[1].strip(" ;\n\t") if found else ""


def _unmarked(sql: str) -> str:
    """A statement in lower case, without backticks and quotes."""
    return re.sub("[`'\"]", "", sql).lower()


def _first_table(sql: str) -> str:
    found = re.search(r"\bFROM ([\w`]+)", sql, re.I)
    return found[1].strip("`") if found else _described(sql)


def _columns(sql: str, query: Query) -> Counter[str]:
    """How often a query names each column, in lower case; of one that does not parse, each word."""
    try:
        names = [column.name for column in Query(sql, query.schema).tree.find_all(exp.Column)]
    except ValueError:
        names = re.findall(r"\w+", sql)
    return Counter(name.lower() for name in names)


def _stems(text: str) -> set[str]:
    """The words of a name or a phrase, in the singular."""
    return {word.rstrip("s") for word in name_words(text)}


def _asks(sql: str) -> bool:
    return re.match(r"\(?\s*(select|with)\b", sql, re.I) is not None


def _lists_tables(sql: str) -> bool:
    return re.fullmatch(r"show\s+(full\s+)?tables", sql, re.I) is not None


def _described(sql: str) -> str:
    """The table, in lower case, whose columns a statement shows; '' for any other statement."""
    found = re.fullmatch(r"(?:desc|describe|explain|show\s+columns\s+from)\s+`?(\w+)`?", sql, re.I)
    return found[1].lower() if found else ""


def _desc(table: str) -> str:
    return f"DESC {quoted(table)}"


def _names(texts: list[str], table: str) -> bool:
    return any(_has(text, table) for text in texts)


def _has(text: str, name: str) -> bool:
    """Whether a name stands in a text, in whatever case."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None


def _short(text: str, words: int) -> str:
    """The first `words` words, not ending in a comma or a small connecting word."""
    parts = text.split()
    if len(parts) > words:
        parts = parts[:words]
        while len(parts) > 1 and parts[-1].lower().rstrip(",:") in _SMALL:
            parts.pop()
    return " ".join(parts).rstrip(",:;")


_SMALL = set("a an and the of on in is to with by or for per so that like = != < > <= >=".split()) | {""}
