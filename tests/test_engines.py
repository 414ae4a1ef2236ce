"""Both engines write the same greedy text, and the text of either is scored before training."""

from dataclasses import replace

import pytest

from retroact_lib import prompts, rollout, stages
from retroact_lib.config import load_config
from retroact_lib.decoding import Request
from retroact_lib.engines import ENGINES
from retroact_lib.examples import rewarded_examples
from retroact_lib.policy import Policy
from retroact_lib.training import score
from tests.test_training import awaken


@pytest.fixture(scope="module", params=[False, True], ids=["shared", "separate"])
def config(request, tiny_checkpoint):
    return load_config(
        "smoke",
        checkpoint=tiny_checkpoint,
        compute_dtype="float32",
        lora_rank=2,
        separate_adapters=request.param,
        max_steps=3,
        max_action_tokens=12,
        max_reflection_tokens=8,
        num_parallel=3,
    )


@pytest.fixture(scope="module")
def policy(config):
    policy = Policy.load(config.policy, seed=0)
    awaken(policy)
    return policy


def played(config, policy, temperature, engine):
    """Two trials with a reflection at every validation task, by place."""
    how = replace(config.rollout, trials=2, temperature=temperature, engine=engine)
    env, tasks = stages.environment(config), stages.task_sets(config)["validation"]
    return dict(rollout.rollouts(policy, env, [(task, 0) for task in tasks], how))


def written(trajectory):
    turns = [turn for trial in trajectory.trials for turn in trial.turns]
    return [(part.text, part.ids) for part in (*turns, *trajectory.reflections)]


def test_greedy_text_is_the_same(config, policy):
    ours, theirs = (played(config, policy, 0.0, engine) for engine in ENGINES)
    assert sorted(theirs) == sorted(ours) == [0, 1, 2, 3]
    for i in ours:
        assert len(ours[i].reflections) == 1 and written(theirs[i]) == written(ours[i])
        assert [t.observation for t in theirs[i].trials[1].turns] == [t.observation for t in ours[i].trials[1].turns]


def test_layers_that_compute_in_bfloat16(config):
    """On a CPU the residual stream stays float32, and transformers' cache has its data type."""
    half = config.change(compute_dtype="bfloat16")
    policy = Policy.load(half.policy, seed=0)
    awaken(policy)
    found = played(half, policy, 0.0, "transformers")
    assert sorted(found) == sorted(played(half, policy, 0.0, "native"))
    assert all(turn.ids for trajectory in found.values() for trial in trajectory.trials for turn in trial.turns)


def test_drawn_text_ends_where_it_should_and_is_scored(config, policy):
    found = played(config, policy, 1.0, "transformers")
    turns = [turn for trajectory in found.values() for trial in trajectory.trials for turn in trial.turns]
    assert len({turn.text for turn in turns}) > 1 and all(turn.logps is None for turn in turns)
    ends = [prompts.action_complete(turn.text) or turn.ids[-1] in policy.stop_ids for turn in turns]
    assert all(len(turn.ids) == 12 or end and len(turn.ids) < 12 for turn, end in zip(turns, ends, strict=True))
    scores = config.change(negative_rewards=True, baseline="role", objective="ppo").rl
    first = next(iter(found.values()))
    first.trials[1] = replace(first.trials[1], reward=1.0)
    rows = score(policy, rewarded_examples(policy, stages.environment(config), [first], scores), 512)
    assert rows and all(row.sampled_logp is None and min(row.behaviour_logp) < -1 for row in rows)


def test_a_request_that_transformers_gives_up_is_an_error(config, policy):
    def talk():
        yield Request([5] * 5000, "planner", lambda text: False, 4, 0.0, 0, fresh=True)

    how = replace(config.rollout, engine="transformers", num_parallel=1, max_context=1024)
    with pytest.raises(RuntimeError, match="gave up a request"):
        list(ENGINES["transformers"](policy, [talk()], how))


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match="engine is 'fast'; expected native or transformers"):
        load_config("smoke", engine="fast")
