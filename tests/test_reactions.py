"""What follows an error, and why trials fail: counted by hand on small trials, and by the real environments' rules."""

from __future__ import annotations

import pytest

from retroact_lib import reactions
from retroact_lib.envs.alfworld.env import ALFWorld
from retroact_lib.envs.base import Task
from retroact_lib.envs.hotpotqa.env import HotpotQA
from retroact_lib.envs.intercode_sql.env import InterCodeSQL
from retroact_lib.trajectories import Trajectory, Trial, Turn

ERROR = "Error executing query: Unknown column 'x' in 'field list'"
SQL = Task(
    "s", "q", "count", {"db": "singer", "gold": "SELECT Name FROM singer", "tables": ["singer"], "columns": ["Name"]}
)
HOTPOT = Task("h", "q", "bridge", {"answer": "Chad", "supporting": [["A", 0], ["B", 0]], "context": []})


def trial(*steps, success=False):
    return Trial([], [Turn("", action, seen) for action, seen in steps], float(success), success)


@pytest.fixture(scope="module")
def sql():
    return InterCodeSQL()


@pytest.mark.parametrize(
    ("steps", "cause"),
    [
        ([("execute[SELECT x FROM singer]", ERROR), ("submit", ERROR)], "error submitted"),
        ([("execute[SHOW TABLES]", "[('singer',)]"), ("submit", "[('singer',)]")], "no query"),
        ([("execute[DESC singer]", "[]"), ("submit", "[]")], "no query"),
        ([("execute[SELECT Name FROM song]", "[]"), ("submit", "[]")], "wrong table"),
        ([("execute[SELECT Age FROM singer]", "[]"), ("submit", "[]")], "wrong column"),
        ([("execute[SELECT Name FROM singer LIMIT 1]", "[]"), ("submit", "[]")], "wrong query"),
        ([("execute[SELECT x FROM singer]", ERROR)] * 2, "repeated itself"),
        ([("execute[SHOW TABLES]", "[]"), ("execute[DESC singer]", "[]")], "ran out of steps"),
        ([], "no step"),
    ],
)
def test_why_a_sql_trial_failed(sql, steps, cause):
    assert sql.cause(SQL, trial(*steps)) == cause


def test_join_keys_are_columns_of_the_answer_too(sql):
    gold = "SELECT T1.Title FROM song AS T1 JOIN singer AS T2 ON T1.Singer_ID = T2.Singer_ID WHERE T2.Name = 'A'"
    task = Task("j", "q", "join", {"db": "singer", "gold": gold, "tables": ["song", "singer"], "columns": ["Title"]})
    for query, cause in ((gold.replace("'A'", "'B'"), "wrong query"), (gold.replace("Title", "Sales"), "wrong column")):
        assert sql.cause(task, trial((f"execute[{query}]", "[]"), ("submit", "[]"))) == cause


@pytest.mark.parametrize(
    ("steps", "cause"),
    [
        ([("Search[x]", "Could not find x. Similar: []."), ("Finish[y]", "Answer given.")], "error submitted"),
        ([("Search[A]", "(A) A is."), ("Finish[y]", "Answer given.")], "article not read"),
        ([("Search[A]", "(A) A. (B) Of Chad."), ("Finish[y]", "Answer given.")], "answer read but not given"),
        ([("Search[A]", "(A) A. (B) B."), ("Finish[y]", "Answer given.")], "wrong conclusion"),
        ([("Search[A]", "(A) A."), ("Lookup[y]", "No results.")], "ran out of steps"),
    ],
)
def test_why_a_hotpotqa_trial_failed(steps, cause):
    assert HotpotQA().cause(HOTPOT, trial(*steps)) == cause


def test_what_each_environment_calls_an_error(sql):
    assert sql.is_error(ERROR) and not sql.is_error("[('Error',)]")
    assert HotpotQA().is_error("No results.") and not HotpotQA().is_error("(A) No results.")
    assert ALFWorld.is_error(None, "Nothing happens.") and not ALFWorld.is_error(None, "You open the fridge 1.")


def test_shares_causes_and_lengths_by_hand(sql):
    look, wrong, right = ("execute[SHOW TABLES]", "[]"), ("execute[SELECT x FROM singer]", ERROR), ("submit", "[]")
    played = [
        trial(look, right, success=True),
        trial(look, wrong, right, success=True),
        trial(look, wrong, right),
        trial(look, right),
    ]
    table = reactions.trial_table(sql, [SQL], [Trajectory("s", "q", "count", [one]) for one in played])
    assert table["errors"].tolist() == [0, 1, 1, 0] and table["steps"].tolist() == [2, 3, 3, 2]
    found = reactions.summary(table, resamples=200)
    assert found["%"].tolist() == [50, 50, 50, 50] and found["n"].tolist() == [4, 4, 2, 2]
    assert reactions.causes(table).to_dict() == {
        "trials": {"error submitted": 1, "no query": 1},
        "share": {"error submitted": 50.0, "no query": 50.0},
    }
    assert reactions.lengths(table).to_dict() == {"solved": {2: 1, 3: 1}, "failed": {2: 1, 3: 1}}


def test_nothing_failed_and_nothing_went_wrong(sql):
    table = reactions.trial_table(sql, [SQL], [Trajectory("s", "q", "count", [trial(("submit", "[]"), success=True)])])
    assert reactions.causes(table).empty and reactions.lengths(table)["failed"].tolist() == [0]
    assert reactions.summary(table)["n"].tolist() == [1, 1, 0, 0]


def test_an_unknown_task_is_one_sentence(sql):
    with pytest.raises(ValueError, match="No task 's' is among the tasks"):
        reactions.trial_table(sql, [], [Trajectory("s", "q", "count", [trial(("submit", "[]"))])])
