"""From trajectories to training rows: which are kept, what they earn, and that they are the text that was read."""

import dataclasses
import json

import pytest

from retroact_lib import stages
from retroact_lib.config import RLConfig, load_config
from retroact_lib.examples import (
    authors_examples,
    imitation_examples,
    played_tokens,
    read_examples,
    rewarded_examples,
    successes,
    write_examples,
)
from retroact_lib.policy import Policy
from retroact_lib.trajectories import Reflection, Retries, Trajectory, Trial, Turn


@pytest.fixture(scope="module")
def env():
    return stages.environment(load_config("smoke"))


@pytest.fixture(scope="module")
def policy(tiny_checkpoint):
    return Policy.load(load_config("smoke", checkpoint=tiny_checkpoint, compute_dtype="float32").policy)


def trajectory(*rewards):
    """Two steps a trial, and between two trials a reflection; trial k says so in its thoughts."""
    reflections = [Reflection(f"I failed in trial {k}.") for k in range(1, len(rewards))]
    trials = []
    for k, reward in enumerate(rewards, 1):
        turns = [Turn(f" Trial {k} looks.\nAction 1: execute[SHOW TABLES]\n", "execute[SHOW TABLES]", "[('singer',)]")]
        turns.append(Turn(f" Trial {k} ends.\nAction 2: submit\n", "submit", "[('singer',)]"))
        trials.append(Trial([r.text for r in reflections[: k - 1]], turns, reward, reward == 1.0))
    return Trajectory("t", "How many singers are there?", "count", trials, reflections)


def agent_text(policy, row):
    return policy.tokenizer.decode([token for token, mask in zip(row.ids, row.mask, strict=True) if mask])


def earned(rows):
    return [(row.role, row.reward) for row in rows]


def rewards(policy, env, *trajectories, **settings):
    return earned(rewarded_examples(policy, env, trajectories, load_config("smoke", **settings).rl))


def test_imitation_keeps_successful_trials_and_reflections_that_helped(policy, env):
    rows = imitation_examples(policy, env, [trajectory(0.5, 0.5, 1.0), trajectory(0.5, 0.0)])
    assert [agent_text(policy, row) for row in rows] == [
        " Trial 3 looks.\nAction 1: execute[SHOW TABLES]\n Trial 3 ends.\nAction 2: submit\n",
        " I failed in trial 2.\n",
    ]
    assert earned(rows) == [("planner", 1.0), ("reflector", 1.0)]


def test_a_row_is_the_text_that_the_role_read_and_wrote(policy, env):
    planner, reflector = imitation_examples(policy, env, [trajectory(0.0, 1.0)])
    read = policy.tokenizer.decode(planner.ids)
    assert env.instruction in read and "Reflection 1: I failed in trial 1.\nQuestion: How many singers" in read
    assert read.endswith(
        "Thought 1: Trial 2 looks.\nAction 1: execute[SHOW TABLES]\nObservation 1: [('singer',)]\n"
        "Thought 2: Trial 2 ends.\nAction 2: submit\n"
    )
    read = policy.tokenizer.decode(reflector.ids)
    assert "Thought 2: Trial 1 ends.\nAction 2: submit\nObservation 2: [('singer',)]\nStatus: failed" in read
    assert "Reflection 1:" not in read and read.endswith("Reflection: I failed in trial 1.\n")


def test_unmasked_rows_train_on_observations_but_never_on_the_prompt(policy, env):
    (masked, _), (unmasked, _) = (imitation_examples(policy, env, [trajectory(0.0, 1.0)], m) for m in (True, False))
    assert masked.ids == unmasked.ids and "singer" not in agent_text(policy, masked)
    assert "Observation 1: [('singer',)]\nThought 2:" in agent_text(policy, unmasked)
    assert "How many" not in agent_text(policy, unmasked)


def slipped():
    """A trial that mends its first step, and one that is right by a slip alone."""
    right = trajectory(1.0)
    right.trials[0].turns[0] = dataclasses.replace(right.trials[0].turns[0], slip=True)
    lucky = trajectory(1.0)
    lucky.trials[0].turns = [dataclasses.replace(turn, slip=True) for turn in lucky.trials[0].turns]
    return [right, lucky]


def test_a_slip_stays_in_the_context_and_carries_no_loss(policy, env):
    (row,) = imitation_examples(policy, env, slipped())
    (plain,) = imitation_examples(policy, env, [trajectory(1.0)])
    assert row.ids == plain.ids  # the same text is read
    assert agent_text(policy, row) == " Trial 1 ends.\nAction 2: submit\n"
    (unmasked,) = imitation_examples(policy, env, slipped(), mask_observations=False)
    assert "Trial 1 looks" not in agent_text(policy, unmasked) and "[('singer',)]" in agent_text(policy, unmasked)


def test_an_arm_may_imitate_slips(policy, env):
    rows = imitation_examples(policy, env, slipped(), mask_slips=False)
    (plain,) = imitation_examples(policy, env, [trajectory(1.0)])
    assert [row.mask for row in rows] == [plain.mask, plain.mask]


def test_the_authors_alfworld_rows_train_on_commands_alone(policy, tmp_path):
    task = "You are in the middle of a room. Your task is to: put a mug in desk.\n"
    output = (
        "> think: A mug may be on the shelf.\nOK.\n> go to shelf 1\nOn the shelf 1, you see a mug 1.\n> take mug 1\n"
    )
    rows = [
        {"input": task, "output": output, "type": "planner"},
        {"input": task, "output": "Next.", "type": "reflector"},
    ]
    file = tmp_path / "alfworld_il.json"
    file.write_text(json.dumps(rows))
    planner, reflector = authors_examples(policy, file)
    assert agent_text(policy, planner) == "> think: A mug may be on the shelf.\n> go to shelf 1\n> take mug 1\n"
    read = policy.tokenizer.decode(planner.ids)
    assert task in read and read.endswith(output) and agent_text(policy, reflector) == "Next."
    unmasked = authors_examples(policy, file, mask_observations=False)[0]
    assert "you see a mug 1" in agent_text(policy, unmasked) and unmasked.ids == planner.ids


def test_a_trial_earns_its_reward_and_a_reflection_the_shaped_change(policy, env):
    # (R_k - R_(k-1)) (R_(k-1) + c) / c with c = 1: 0.5 * 1, then 0.5 * 1.5
    full = [("planner", 0.5), ("planner", 1.0), ("reflector", 0.5), ("reflector", 0.75)]
    assert rewards(policy, env, trajectory(0.0, 0.5, 1.0)) == full
    assert rewards(policy, env, trajectory(0.0, 0.5, 1.0), reflector_c=0.5)[3] == ("reflector", 1.0)


def test_what_earns_nothing_is_left_out_and_a_fall_only_on_request(policy, env):
    assert rewards(policy, env, trajectory(0.0, 0.0)) == []
    assert rewards(policy, env, trajectory(0.5, 0.0)) == [("planner", 0.5)]
    kept = rewards(policy, env, trajectory(0.5, 0.0), negative_rewards=True)
    assert kept == [("planner", 0.5), ("reflector", -0.75)]


def test_a_reflection_earns_what_its_retries_gain(policy, env):
    made = trajectory(0.5, 1.0)
    tried = {reward: trajectory(0.5, reward).trials[1] for reward in (0.0, 0.25, 0.5)}
    made.retries = [
        Retries(1, None, [tried[0.25], tried[0.25]]),
        Retries(1, made.reflections[0], [made.trials[1], tried[0.0]]),
        Retries(1, Reflection("It was the other table."), [tried[0.25], tried[0.25]]),
    ]
    rows = rewarded_examples(policy, env, [made], load_config("smoke", negative_rewards=True).rl)
    assert earned(rows) == [
        *[("planner", reward) for reward in (0.5, 1.0, 0.25, 0.25, 0.25, 0.25)],
        ("reflector", pytest.approx((0.5 - 0.25) * 1.5)),  # the second reflection gains nothing and is left out
    ]


@pytest.mark.parametrize(("reveal", "verdict"), [(False, "Status: failed. Name"), (True, "failed, reward 0.50. Name")])
def test_the_reflector_reads_a_reward_only_where_it_is_revealed(policy, env, reveal, verdict):
    made, config = trajectory(0.5, 1.0), load_config("smoke").rl
    imitated = imitation_examples(policy, env, [made], reveal_reward=reveal)
    for row in (imitated[-1], rewarded_examples(policy, env, [made], config, reveal_reward=reveal)[-1]):
        assert row.role == "reflector" and verdict in policy.tokenizer.decode(row.ids)


def test_a_baseline_is_the_mean_of_the_role(policy, env):
    made = trajectory(0.0, 1.0), trajectory(0.5, 0.5)
    rows = rewards(policy, env, *made, baseline="role", objective="ppo")
    assert rows == [("planner", -0.5), ("planner", 0.5), ("reflector", 0.5), ("reflector", -0.5)]


def test_a_task_is_compared_with_its_other_examples(policy, env):
    made = [trajectory(*earned) for earned in ((0.0, 0.25), (0.5, 0.75), (1.0,), (0.25,))]
    made[3].task_id = "alone"
    rows = rewards(policy, env, *made, baseline="task", objective="ppo")
    # first trials: 0 - (0.5 + 1) / 2, 0.5 - (0 + 1) / 2, 1 - (0 + 0.5) / 2. Second trials, which read a reflection, are
    # compared with each other. The single draw of a text tells nothing.
    assert rows[:4] == [("planner", reward) for reward in (-0.75, -0.5, 0.5, 0.75)]
    # A reflection is compared with doing without one, which earns nothing: 0.25 * 1 and 0.25 * 1.5.
    assert rows[4:] == [("reflector", 0.25), ("reflector", 0.375)]
    made = trajectory(0.0, 1.0)
    made.retries = [
        Retries(1, None, [made.trials[0], made.trials[0]]),
        Retries(1, made.reflections[0], [made.trials[1]]),
        Retries(1, Reflection("It was the other table."), [made.trials[0]]),
    ]
    rows = rewards(policy, env, made, baseline="task", objective="ppo")
    # Its two reflections earn 1 and 0: 1 - (0 + 0) / 2 and 0 - (1 + 0) / 2.
    assert [row for row in rows if row[0] == "reflector"] == [("reflector", 1.0), ("reflector", -0.5)]


def test_a_success_is_a_full_reward_or_a_reflection_that_helped(policy, env):
    config = load_config("smoke", negative_rewards=True).rl
    found = rewarded_examples(policy, env, [trajectory(0.0, 0.5, 1.0), trajectory(0.5, 0.25)], config)
    assert ("reflector", -0.375) in earned(found) and ("planner", 0.5) in earned(found)
    kept = successes(found)
    assert earned(kept) == [("planner", 1.0), ("reflector", 1.0), ("reflector", 1.0)]
    assert "Trial 3" in agent_text(policy, kept[0])


def test_played_tokens_are_what_was_read_and_written(policy, env):
    played = trajectory(0.0, 1.0)
    ids = policy.encode(" I failed in trial 1.\n")
    played.reflections[0] = dataclasses.replace(played.reflections[0], ids=ids)
    (second, _), (first,) = (imitation_examples(policy, env, [made]) for made in (played, trajectory(1.0)))
    assert played_tokens(policy, env, [played, played]) == 2 * (len(first.ids) + len(second.ids) + len(ids))


def test_examples_come_back_from_their_file_as_they_were(policy, env, tmp_path):
    rows = rewarded_examples(policy, env, [trajectory(0.0, 0.5, 1.0)], RLConfig())
    rows[0] = dataclasses.replace(rows[0], behaviour_logp=[-0.1 / 3] * len(rows[0].ids))
    file = tmp_path / "examples.jsonl"
    write_examples(file, rows)
    assert read_examples(file) == rows
    file.write_text(file.read_text()[:-9])
    with pytest.raises(ValueError, match="examples.jsonl is damaged .*delete its run"):
        read_examples(file)
