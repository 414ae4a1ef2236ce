"""The JSONL store, the rendering, and the reader of the authors' released files."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from retroact_lib.authors import read_authors_file, split_authors_output
from retroact_lib.trajectories import (
    Reflection,
    Retries,
    Trajectory,
    Trial,
    Turn,
    append_trajectories,
    read_trajectories,
    reflector_reward,
    retry_credit,
    write_trajectories,
)

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "data"


def example(i: int = 0) -> Trajectory:
    rng = random.Random(i)
    failed = Trial(
        [],
        [
            Turn(
                " I look.\nAction 1: execute[SHOW TABLES]\n",
                "execute[SHOW TABLES]",
                "[('singer',)]",
                [5, 6],
                [-rng.random() * 9, -1e-17],
            ),
            Turn(" Done – <b>é\u2028\nAction 2: submit\n", "submit", "", None, None),
        ],
        1 / 3,
        False,
    )
    solved = Trial(["Look & think."], [Turn(" Now.\nAction 1: submit\n", "submit", "x")], 1.0, True)
    return Trajectory(
        f"task/{i}", "How many <i>singers</i>?", "count", [failed, solved], [Reflection("Look & think.", [1], [-0.1])]
    )


# --------------------------------------------------------------------------------------------------------- rewards


def test_a_reflection_is_worth_what_retries_gain_by_it():
    # (1 + 0.5) / 2 with it, (0 + 0.25) / 2 without, after a trial that was half right
    assert retry_credit(0.5, [1.0, 0.5], [0.0, 0.25], c=1.0) == pytest.approx((0.75 - 0.125) * 1.5)
    # luck that comes without it too earns nothing
    assert retry_credit(0.0, [1.0, 0.0], [0.0, 1.0]) == 0
    # one greedy retry without it repeats the trial
    assert retry_credit(0.4, [0.9], [0.4], c=2.0) == pytest.approx(reflector_reward(0.4, 0.9, c=2.0))
    with pytest.raises(ValueError, match="at least one retry with it and one without"):
        retry_credit(0.5, [1.0], [])


@pytest.mark.parametrize(
    ("previous", "current", "c", "expected"),
    [(0.0, 1.0, 1.0, 1.0), (0.5, 1.0, 1.0, 0.75), (1.0, 0.0, 1.0, -2.0), (0.4, 0.4, 1.0, 0.0), (0.5, 1.0, 2.0, 0.625)],
)
def test_reflector_reward(previous, current, c, expected):
    assert reflector_reward(previous, current, c) == pytest.approx(expected)


@pytest.mark.parametrize("c", [0.0, -1.0, math.nan])
def test_reflector_reward_needs_a_positive_coefficient(c):
    with pytest.raises(ValueError, match="must be above 0"):
        reflector_reward(0.0, 1.0, c)


# ----------------------------------------------------------------------------------------------------------- store


def test_write_append_read_are_exact(tmp_path):
    path = tmp_path / "new" / "trajectories.jsonl"
    rows = [example(i) for i in range(4)]
    write_trajectories(path, rows[:2])
    append_trajectories(path, rows[2:3])
    append_trajectories(path, rows[3:])
    assert read_trajectories(path) == rows
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    write_trajectories(path, iter(rows[1:2]))
    assert read_trajectories(path) == rows[1:2]
    write_trajectories(path, [])
    assert read_trajectories(path) == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.jsonl"
    write_trajectories(path, [example()])
    bad = example(1)
    bad.trials[0].reward = math.nan
    with pytest.raises(ValueError, match="task/1 holds a number that is not finite"):
        write_trajectories(path, [example(), bad])
    with pytest.raises(ValueError, match="not finite"):
        append_trajectories(path, [bad])
    assert read_trajectories(path) == [example()] and len(list(tmp_path.iterdir())) == 1


def test_recovery_at_every_cut(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [example(i) for i in range(3)]
    write_trajectories(path, rows)
    data = path.read_bytes()
    start = data[:-1].rfind(b"\n") + 1
    for cut in range(start + 1, len(data)):
        path.write_bytes(data[:cut])
        if cut < len(data) - 1:
            with pytest.raises(ValueError, match=r"t\.jsonl, line 3: .*half written.*recover=True"):
                read_trajectories(path)
        with pytest.raises(ValueError, match="ends in half a line"):
            append_trajectories(path, [rows[2]])
        expected = rows[:2] if cut < len(data) - 1 else rows  # only the line end was missing
        assert read_trajectories(path, recover=True) == expected
        append_trajectories(path, [rows[0]])
        assert read_trajectories(path) == [*expected, rows[0]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"task_id": "x"}', "question: Field required"),
        (b"[1]", "should be an object"),
        (b"{nonsense", "Invalid JSON"),
        (b"\xff\xfe\x00", "Invalid JSON"),
        (b"", "Invalid JSON"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    path = tmp_path / "t.jsonl"
    write_trajectories(path, [example(), example(1)])
    first, second, _ = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([first, line, second, b""]))
    for recover in (False, True):
        with pytest.raises(ValueError, match=rf"t\.jsonl, line 2: not a trajectory .*{message}.*delete that line"):
            read_trajectories(path, recover=recover)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(question=3), "question: Input should be a valid string"),
        (lambda t: t.update(trials={}), "trials: Input should be a valid array"),
        (lambda t: t["trials"][0].update(success=1), "trials.0.success: Input should be a valid boolean"),
        (lambda t: t["trials"][0].update(reward="1"), "trials.0.reward: Input should be a valid number"),
        (lambda t: t["trials"][0]["turns"][0].update(ids=["a"]), "turns.0.ids.0: Input should be a valid integer"),
        (lambda t: t["trials"][0]["turns"][0].pop("action"), "turns.0.action: Field required"),
        (lambda t: t["trials"][0].update(verdict="good"), "trials.0.verdict: Unexpected keyword argument"),
    ],
)
def test_wrong_types_are_named(tmp_path, change, message):
    path = tmp_path / "t.jsonl"
    write_trajectories(path, [example()])
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=message):
        read_trajectories(path)


def test_slips_are_kept_and_older_files_have_none(tmp_path):
    path = tmp_path / "t.jsonl"
    one = Trajectory("t", "q", "f", [Trial([], [Turn(" a", "a", "o", slip=True), Turn(" b", "b", "o")], 1.0, True)])
    write_trajectories(path, [one])
    assert read_trajectories(path) == [one] and "(slip)" in one._repr_html_()
    older = json.loads(path.read_text())
    for turn in older["trials"][0]["turns"]:
        del turn["slip"]
    path.write_text(json.dumps(older) + "\n")
    assert [turn.slip for turn in read_trajectories(path)[0].trials[0].turns] == [False, False]


def test_retries_are_kept_and_every_attempt_counts_once(tmp_path):
    made = example()
    failed, solved = made.trials
    made.retries = [
        Retries(1, None, [failed, failed]),
        Retries(1, made.reflections[0], [solved, failed]),  # the trajectory went on with the first
        Retries(1, Reflection("Look closer."), [solved, solved]),
    ]
    beside = [(1, failed), (1, failed), (1, failed), (1, solved), (1, solved)]
    assert made.attempts() == [(0, failed), (1, solved), *beside]
    worth = "(retries earn 0.67 with it, 0.33 without)"
    assert f"Reflection 1: Look & think. {worth}" in str(made) and worth in made._repr_html_()
    write_trajectories(tmp_path / "t.jsonl", [made])
    assert read_trajectories(tmp_path / "t.jsonl") == [made]
    record = json.loads((tmp_path / "t.jsonl").read_text())
    del record["retries"]  # as older files are
    (tmp_path / "t.jsonl").write_text(json.dumps(record) + "\n")
    assert read_trajectories(tmp_path / "t.jsonl") == [example()]


def test_whole_numbers_read_as_floats(tmp_path):
    path = tmp_path / "t.jsonl"
    write_trajectories(path, [example()])
    path.write_text(path.read_text().replace('"reward": 1.0', '"reward": 1'))
    assert isinstance(read_trajectories(path)[0].trials[1].reward, float)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_trajectories(tmp_path / "none.jsonl")


# ------------------------------------------------------------------------------------------------------- rendering


def test_html_is_escaped_and_complete():
    page = example()._repr_html_()
    assert "<i>" not in page and "&lt;i&gt;singers" in page
    assert page.count("Reflection 1") == 1 and "Look &amp; think." in page
    for text in (
        "Thought 1",
        "Action 2",
        "Observation 1",
        "Trial 1",
        "Trial 2",
        "failure · reward 0.33",
        "success · reward 1.00",
        "[(&#x27;singer&#x27;,)]",
    ):
        assert text in page, text
    assert page.count("<div") == page.count("</div>") and "<style" not in page and "<script" not in page
    single = example().trials[1]._repr_html_()
    assert "Reflection 1" in single and "Trial" in single


def test_plain_text():
    text = str(example())
    assert "Task task/0 (count)" in text and "--- Reflection 1: Look & think." in text
    assert "--- Trial 2: reward 1.00 (success)\nThought 1: Now." in text
    assert str(example().trials[1]).startswith("Reflection 1: Look & think.\nThought 1:")


def test_an_empty_trajectory_renders():
    empty = Trajectory("a", "b", "c")
    assert str(empty) and empty._repr_html_()


# --------------------------------------------------------------------------------------------- the authors' files

NUMBERED = (
    "Thought 1: I look at the tables. Observation 7: is only said here.\nAction 1: execute[SHOW TABLES]\n"
    "Observation 1: [('a',)]\nsecond line\n\nThought: not a cue\nThought 2: Observation of a table\n"
    "Action 2: submit\nObservation 2: [(1,),\n(2,)]\n\nSTATUS: FAIL\nREWARD: 0.25"
)


def test_numbered_observations_are_the_environments():
    assert split_authors_output(NUMBERED) == [
        ("Thought 1:", False),
        (" I look at the tables. Observation 7: is only said here.\nAction 1: execute[SHOW TABLES]\n", True),
        ("Observation 1: [('a',)]\nsecond line\n\nThought: not a cue\nThought 2:", False),
        (" Observation of a table\nAction 2: submit\n", True),
        ("Observation 2: [(1,),\n(2,)]\n\nSTATUS: FAIL\nREWARD: 0.25", False),
    ]


def test_alfworld_commands_are_the_agents():
    output = "> think: I need a mug.\nOK.\n> go to desk 1\nOn the desk 1, you see a mug 1.\n\n> take mug 1\nTaken."
    assert split_authors_output(output) == [
        ("> think: I need a mug.\n", True),
        ("OK.\n", False),
        ("> go to desk 1\n", True),
        ("On the desk 1, you see a mug 1.\n\n", False),
        ("> take mug 1\n", True),
        ("Taken.", False),
    ]
    assert split_authors_output(" go to desk 1\nNothing.\n> look\n", prompt="Here is the task.\n>") == [
        (" go to desk 1\n", True),
        ("Nothing.\n", False),
        ("> look\n", True),
    ]


@pytest.mark.parametrize(
    ("output", "agent"),
    [
        ("", ""),
        ("just some words", "just some words"),
        ("Thought 1: a\nAction 1: submit\n\nSTATUS: OK", " a\nAction 1: submit"),
        ("Thought 1: a\nAction 1: x[1 > 2]\nObservation 1: b", " a\nAction 1: x[1 > 2]\n"),
        (" a\nAction 1: x\nObservation 1: b\nThought 2: c\nAction 2: y", " a\nAction 1: x\n c\nAction 2: y"),
        ("Thought 9: a\nAction 9: x\nObservation 9: Thought 10: no\nThought 10: c", " a\nAction 9: x\n c"),
    ],
)
def test_what_the_agent_wrote(output, agent):
    segments = split_authors_output(output)
    assert "".join(text for text, _ in segments) == output
    assert "".join(text for text, mine in segments if mine) == agent
    assert all(text for text, _ in segments)
    assert all(a[1] != b[1] for a, b in zip(segments, segments[1:], strict=False))


def test_any_mixture_of_lines_joins_back():
    pieces = [
        "Thought 1:",
        "Thought 2: x",
        "Action 1: execute[a]",
        "Observation 1: b",
        "> look",
        "",
        "STATUS: OK",
        "REWARD: 1",
        "Observation 2:",
        "plain",
        "\r",
        "\u2028",
    ]
    rng = random.Random(0)
    for _ in range(2000):
        output = "".join(rng.choice(pieces) + rng.choice(["\n", "\n", ""]) for _ in range(rng.randrange(12)))
        assert "".join(text for text, _ in split_authors_output(output)) == output


def test_rows(tmp_path):
    path = tmp_path / "rl.json"
    path.write_text(
        json.dumps(
            [
                {"instruction": "", "input": "p", "output": NUMBERED, "type": "planner", "reward": 1},
                {
                    "instruction": "Be brief.",
                    "input": "q",
                    "output": " plan",
                    "type": "reflector",
                    "last_reward": 0.5,
                    "current_reward": 1,
                },
                {"input": "p", "output": "", "type": "reflector"},
            ]
        )
    )
    planner, reflector, empty = read_authors_file(path)
    assert (planner.role, planner.prompt, planner.reward, len(planner.segments)) == ("planner", "p", 1.0, 5)
    assert (reflector.prompt, reflector.segments, reflector.reward) == ("Be brief.\nq", [(" plan", True)], 0.75)
    assert empty.segments == [] and empty.reward is None


GOOD = {"input": "p", "output": "o", "type": "planner"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", r"f\.json is not JSON"),
        ('{"input": "p"}', r"f\.json holds a JSON dict; expected a list"),
        (["x"], r"f\.json, row 0: expected an object"),
        ([GOOD, {"input": "p", "type": "planner"}], r"f\.json, row 1: the field 'output' is missing"),
        ([GOOD | {"output": None}], "row 0: the field 'output' should be text, got NoneType"),
        ([GOOD | {"type": "critic"}], "row 0: the field 'type' should be planner or reflector, got 'critic'"),
        ([GOOD | {"reward": "1"}], "the field 'reward' should be a finite number, got '1'"),
        ([GOOD | {"reward": True}], "the field 'reward' should be a finite number, got True"),
        ([GOOD | {"instruction": 3}], "the field 'instruction' should be text"),
        ([GOOD | {"type": "reflector", "last_reward": 0}], "the field 'current_reward' is missing"),
        ([GOOD | {"type": "reflector", "current_reward": 0}], "the field 'last_reward' is missing"),
    ],
)
def test_malformed_files(tmp_path, content, message):
    path = tmp_path / "f.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_authors_file(path)


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_the_real_samples(stage):
    path = SAMPLES / f"retroact_intercode_{stage}.sample120.json"
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    raw, rows = json.loads(path.read_text()), read_authors_file(path)
    environment = total = 0
    for row, record in zip(rows, raw, strict=True):
        assert "".join(text for text, _ in row.segments) == record["output"]
        assert row.role == record["type"] and (row.reward is not None) == (stage == "rl")
        if row.role == "reflector":
            continue
        agent = [text for text, mine in row.segments if mine]
        assert all(text.startswith(" ") and "\nAction " in text and "\nObservation" not in text for text in agent)
        assert len(agent) == record["output"].count("\nAction ")
        total += len(record["output"])
        environment += sum(len(text) for text, mine in row.segments if not mine)
    assert 0.4 < environment / total < 0.55
