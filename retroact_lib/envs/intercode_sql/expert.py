"""The scripted expert for InterCode-SQL."""

from __future__ import annotations

import random
import re

from retroact_lib.envs.base import Env, Task, listed
from retroact_lib.envs.intercode_sql.mistakes import EARLY, GUESS, REPEAT, Mistake, draw_mistake
from retroact_lib.envs.intercode_sql.query import Query, describe, wanted
from retroact_lib.experts.base import Expert, Session, Steps
from retroact_lib.trajectories import Trial

RECOVERY_RATE = 0.1
"""Chance that a slip which causes an error is mended within its trial. Such a trial succeeds, and the planner then
imitates the slip as well as the mending, so it should be rare."""

_LOOK = ("I start with the names of the tables.", "First I list the tables.")
_RECALL = ("The reflection tells me to {plan}. I start with the tables.", "Now I will {plan}. First I list the tables.")
_SKIP = ("From the reflection I know that I need {tables}. I check the columns of {table}.",)
_FIRST = ("I need {tables}. I check the columns of {table}.",)
_NEXT = ("I also need {table}. I check its columns.",)
_PLAN = ("I need {d}.", "Now I can write the query: {d}.")
_REPLAN = ("As the reflection says, I need {d}.",)
_CHECK = ("The result shows {w}, as the question asks, so I submit.", "The query ran and gives {w}, so I submit.")
_EMPTY = ("No rows match, so the answer is empty and I submit it.",)
_GIVE_UP = ("The query failed, but I submit what I have.",)
_GUESS = ("There should be a table {table}, so I query it directly.", "I think the table is {table}. I query it.")
_AGAIN = ("That failed, but the query looks right to me. I try again.", "Maybe it works if I run it once more.")
_EARLY = ("This description of the table should be enough, so I submit.", "I have seen the columns. I submit this.")
_NO_TABLE = ("That table does not exist. I list the tables.",)
_NO_COLUMN = ("The query failed on a column. I check the columns of {table}.",)
_REFLECTIONS = (
    "I {did}. Next time I will {plan}.",
    "My mistake: I {did}. Plan: {plan}.",
    "The answer was wrong because I {did}. I should {plan} before I submit.",
    "I {did}. In the next attempt I will {plan}, check the rows and then submit.",
    "I should not have submitted yet: I {did}. The fix is to {plan}.",
)
_UNEXPLAINED = (
    "run a query for {w}, compare columns and conditions with the question, and check the rows",
    "read the question again and make sure that the query returns {w}",
)


class ScriptedSQLExpert(Expert):
    """Knows the gold SQL and still explores as a careful person would, or slips as a hasty one does.

    A careful trial lists the tables, looks at the columns of those that matter, runs the gold query and submits.
    Its thoughts come from the question, what it has seen, and the query it is about to run.
    """

    def session(
        self, env: Env, task: Task, rng: random.Random, mistake_rate: float, max_trials: int, max_steps: int
    ) -> Session:
        for name in ("db", "gold"):
            if not isinstance(task.meta.get(name), str):
                raise ValueError(f"task {task.id} has no text {name!r} in its meta, which the SQL expert needs")
        query = Query(task.meta["gold"], env.schema(task.meta["db"]))  # type: ignore[attr-defined]
        return _SQLSession(query, rng, mistake_rate, max_trials, max_steps)


class _SQLSession(Session):
    def __init__(self, query: Query, rng: random.Random, mistake_rate: float, max_trials: int, max_steps: int) -> None:
        self.query, self.rng, self.max_steps = query, rng, max_steps
        self.tables = query.tables[:3]
        self.slips: list[Mistake] = []
        """The slips of the first trials; after them every trial is careful."""
        if rng.random() < mistake_rate and (first := draw_mistake(query, rng)):
            self.slips.append(first)
            if max_trials >= 3 and rng.random() < 0.2 and (second := draw_mistake(query, rng, avoid=[first.name])):
                self.slips.append(second)
        self.trial = 0

    def attempt(self, reflections: list[str]) -> Steps:
        slip = self.slips[self.trial] if self.trial < len(self.slips) else None
        before = self.slips[self.trial - 1] if 0 < self.trial <= len(self.slips) else None
        self.trial += 1
        return self._careful(reflections, before) if slip is None else self._slip(slip, reflections, before)

    def reflect(self, trial: Trial) -> str:
        slip = self.slips[self.trial - 1] if self.trial <= len(self.slips) else None
        submitted = bool(trial.turns) and trial.turns[-1].action == "submit"
        did = slip.did if slip else "gave an answer that the evaluator did not accept"
        if slip and submitted and len(trial.turns) > 1 and _is_error(trial.turns[-2].observation):
            did = f"{did}, and submitted the error"
        plan = slip.plan if slip else self._say(_UNEXPLAINED, w=wanted(self.query.select))
        templates = _REFLECTIONS if submitted else _REFLECTIONS[:2]  # the others speak of submitting
        return self._say(templates, did=_short(did, 19), plan=_short(plan, 15))

    def _say(self, templates: tuple[str, ...], **words: str) -> str:
        return self.rng.choice(templates).format(**words)

    # ---- the parts of a trial

    def _careful(self, reflections: list[str], before: Mistake | None) -> Steps:
        yield from self._explore(reflections, before, self.tables, used=0)
        yield from self._answer(_REPLAN if reflections else _PLAN)

    def _answer(self, templates: tuple[str, ...]) -> Steps:
        seen = yield self._say(templates, d=describe(self.query)), f"execute[{self.query.sql}]"
        yield self._check(seen, self.query), "submit"

    def _check(self, seen: str, query: Query) -> str:
        if _is_error(seen):
            return self._say(_GIVE_UP)
        if seen.strip() in ("", "[]", "()"):
            return self._say(_EMPTY)
        return self._say(_CHECK, w=wanted(query.select))

    def _explore(self, reflections: list[str], before: Mistake | None, tables: list[str], used: int) -> Steps:
        """List the tables, look at those that matter; as much as leaves two steps for query and submit."""
        skip = bool(tables) and all(_names(reflections[-1:], t) for t in tables) and self.rng.random() < 0.3
        words = {"tables": listed(tables), "plan": _short(before.plan, 12) if before else ""}
        todo: list[tuple[str, str]] = []
        if not skip:
            todo.append((self._say(_RECALL if before else _LOOK, **words), "execute[SHOW TABLES]"))
        for i, table in enumerate(tables):
            templates = _NEXT if i else _SKIP if skip else _FIRST
            thought = self._say(templates, table=table, before=tables[i - 1], **words)
            todo.append((thought, f"execute[{_desc(table)}]"))
        steps_left = max(0, self.max_steps - used - 2)
        for step in todo[max(0, len(todo) - steps_left) :]:  # noqa: UP028 (a list takes no observations)
            yield step

    def _slip(self, slip: Mistake, reflections: list[str], before: Mistake | None) -> Steps:
        recovers = self.rng.random() < RECOVERY_RATE
        if slip.mode == GUESS:
            wrong = Query(slip.sql, self.query.schema)
            seen = yield self._say(_GUESS, table=wrong.first_table), f"execute[{slip.sql}]"
            if recovers and _is_error(seen):
                yield self._say(_NO_TABLE), "execute[SHOW TABLES]"
                yield from self._look_again(_FIRST, used=2)
                yield from self._answer(_PLAN)
            else:
                yield self._check(seen, wrong), "submit"
            return
        blind = slip.name in ("guessed_column", "repeated_error")
        looked = [] if blind else self.tables[:1] if slip.name == "forgotten_join" else self.tables
        yield from self._explore(reflections, before, looked, used=0)
        if slip.mode == EARLY:
            yield self._say(_EARLY), "submit"
            return
        wrong = Query(slip.sql, self.query.schema)
        seen = yield self._say(_PLAN, d=describe(wrong)), f"execute[{slip.sql}]"
        while slip.mode == REPEAT:  # until the environment or the step limit ends the trial
            seen = yield self._say(_AGAIN), f"execute[{slip.sql}]"
        if recovers and _is_error(seen):
            yield from self._look_again(_NO_COLUMN, used=len(looked) + 2, known=looked)
            yield from self._answer(_PLAN)
        else:
            yield self._check(seen, wrong), "submit"

    def _look_again(self, templates: tuple[str, ...], used: int, known: list[str] | None = None) -> Steps:
        """After an error: the columns of the tables not looked at before."""
        unseen = [t for t in self.tables if t not in (known or [])]
        for i, table in enumerate(unseen[: max(0, self.max_steps - used - 2)]):
            words = {"tables": listed(self.tables), "table": table, "before": self.tables[self.tables.index(table) - 1]}
            yield self._say(_NEXT if i else templates, **words), f"execute[{_desc(table)}]"


def _is_error(observation: str) -> bool:
    return observation.lstrip().lower().startswith("error")


def _desc(table: str) -> str:
    return f"DESC {table}" if table.isidentifier() else f"DESC `{table}`"


def _names(texts: list[str], table: str) -> bool:
    return any(re.search(rf"\b{re.escape(table)}\b", text, re.IGNORECASE) for text in texts)


def _short(text: str, words: int) -> str:
    """The first `words` words, not ending in a comma or a small connecting word."""
    parts = text.split()
    if len(parts) > words:
        parts = parts[:words]
        while len(parts) > 1 and parts[-1].lower().rstrip(",:") in _SMALL:
            parts.pop()
    return " ".join(parts).rstrip(",:;")


_SMALL = {
    "",
    "a",
    "an",
    "and",
    "the",
    "of",
    "on",
    "in",
    "is",
    "to",
    "with",
    "by",
    "or",
    "for",
    "per",
    "so",
    "that",
    "like",
    "=",
    "!=",
    "<",
    ">",
    "<=",
    ">=",
}
