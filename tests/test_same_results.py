"""The study sees and learns what it did: tasks, demonstrations, token examples, episodes and losses are as recorded.

Moving code about must leave `same_results.json` alone. A change that is meant to alter what is recorded there writes it
anew with `python -m tests.test_same_results`, and its message says what changed and why.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import pytest

from retroact_lib import examples, experts, rollout, stages, training
from retroact_lib.config import load_config
from retroact_lib.files import digest_of
from retroact_lib.runs import Run

RECORD = Path(__file__).with_name("same_results.json")
SIZES = {
    "intercode_sql": dict(il_tasks=24, rl_tasks=6, test_tasks=6, validation_tasks=6),
    "hotpotqa": dict(il_tasks=20, rl_tasks=10, test_tasks=10, validation_tasks=10),
    "alfworld": dict(il_tasks=6, rl_tasks=2, test_tasks=2, validation_tasks=2),
}
TRAINING = dict(sft_epochs=1, sft_warmup=2, rl_warmup=2, rl_epochs=1, rl_batch=4, il_batch=2)
ROLLOUTS = dict(max_steps=3, max_action_tokens=10, max_reflection_tokens=6, trials=2)


def small(env: str, checkpoint: str):
    """The laptop study of an environment with few tasks, on a tiny random model in float32."""
    values = SIZES[env] | TRAINING | ROLLOUTS | dict(checkpoint=checkpoint, compute_dtype="float32", lora_rank=2)
    return load_config("laptop", env=env, **values)


def played(trajectories) -> str:
    """A digest of what was said, done, seen and earned."""
    return digest_of(
        [
            [t.task_id, [r.text for r in t.reflections]]
            + [[k.reward, k.success, [[s.text, s.action, s.observation, s.ids] for s in k.turns]] for k in t.trials]
            for t in trajectories
        ]
    )


def of_environment(env: str, checkpoint: str) -> dict:
    """Tasks by set, demonstrations, and the examples that they become."""
    config = small(env, checkpoint)
    sets, environment = stages.task_sets(config), stages.environment(config)
    steps = load_config("laptop", env=env).rollout.max_steps
    shown = experts.expert_trajectories(environment, sets["il"], 2, 0, 0.6, max_steps=steps)
    made = examples.imitation_examples(stages.load_policy(config, None), environment, shown)
    return {
        "tasks": {name: digest_of([dataclasses.asdict(task) for task in tasks]) for name, tasks in sets.items()},
        "demonstrations": played(shown),
        "examples": digest_of([[e.role, e.ids, e.mask] for e in made]),
    }


def of_training(checkpoint: str, folder: Path) -> dict:
    """Losses of both stages, and episodes of the policy that stage 1 left."""
    config = small("intercode_sql", checkpoint)
    tasks, environment = stages.task_sets(config)["il"], stages.environment(config)
    policy = stages.load_policy(config, None)
    shown = experts.expert_trajectories(environment, tasks, 2, 0, 0.6, max_steps=6)
    made = examples.imitation_examples(policy, environment, shown)
    sft, rl = (Run.open(folder, name, {}, {}) for name in ("sft", "rl"))
    training.sft(policy, made, config.sft, sft, seed=0)
    episodes = [(task, 3) for task in tasks[:6]]
    found = {}
    for name, temperature in (("greedy", 0.0), ("sampled", 0.05)):
        how = config.change(temperature=temperature).rollout
        ended = dict(rollout.rollouts(policy, environment, episodes, how))
        found[name] = played(ended[i] for i in range(len(episodes)))
    scored = training.score(policy, made, config.sft.batch_tokens)
    training.joint_rl(policy, scored, made, config.rl, config.sft, rl, seed=0)
    found["sft"] = [row["il_loss"] for row in sft.metrics()]
    found["rl"] = [[row[name] for name in ("pg_loss", "il_loss", "kl", "lr")] for row in rl.metrics()]
    return found


@pytest.mark.parametrize("env", SIZES)
def test_tasks_demonstrations_and_examples(env, tiny_checkpoint):
    if env == "alfworld":
        pytest.importorskip("fast_downward", reason="the extra [alfworld] is not installed")
    assert of_environment(env, tiny_checkpoint) == json.loads(RECORD.read_text())[env]


def test_episodes_and_losses(tiny_checkpoint, tmp_path):
    recorded, found = json.loads(RECORD.read_text())["training"], of_training(tiny_checkpoint, tmp_path)
    assert {name: found[name] for name in ("greedy", "sampled")} == {n: recorded[n] for n in ("greedy", "sampled")}
    assert found["sft"] == pytest.approx(recorded["sft"], abs=1e-4)
    for now, then in zip(found["rl"], recorded["rl"], strict=True):
        assert now == pytest.approx(then, abs=1e-4)


if __name__ == "__main__":
    from tests.conftest import make_tiny_checkpoint

    with tempfile.TemporaryDirectory() as made:
        tiny = make_tiny_checkpoint(Path(made) / "model")
        record = {env: of_environment(env, tiny) for env in SIZES} | {"training": of_training(tiny, Path(made))}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
