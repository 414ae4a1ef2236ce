"""The real checkpoint in real NF4 on a real database: what a tiny random model cannot show."""

import dataclasses
import json

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit

from retroact_lib import examples, experts, losses, rollout, stages, training
from retroact_lib.config import load_config
from retroact_lib.decoding import Request, decode
from retroact_lib.examples import authors_examples, collate, imitation_examples
from retroact_lib.policy import Policy
from retroact_lib.runs import Run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config():
    return load_config("smoke", compute_dtype="float32", lora_rank=4, il_tasks=2, test_tasks=3, trials=2)


@pytest.fixture(scope="module")
def policy(config):
    return Policy.load(config.policy)


@pytest.fixture(scope="module")
def rows(config, policy):
    env, tasks = stages.environment(config), stages.task_sets(config)["il"]
    return imitation_examples(policy, env, experts.expert_trajectories(env, tasks, 2, 0, 1.0))


def gradient(policy, row):
    batch = collate([row], policy.tokenizer.pad_token_id, policy.device)
    for parameter in policy.parameters():
        parameter.grad = None
    loss = losses.imitation_loss(policy.log_probs(batch.ids_BT, batch.mask_BT, "planner"), batch.mask_BT)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()]), float(loss.detach())


def test_it_is_a_language_model_in_four_bits(policy):
    linears = [m for m in policy.model.modules() if isinstance(m, Linear4bit)]
    assert len(linears) == 210 and all(m.weight.dtype == torch.uint8 for m in linears)
    assert all(m.weight.quant_state.quant_type == "nf4" and m.weight.quant_state.nested for m in linears)

    def ask():
        prompt = policy.prompt_ids("You are a helpful assistant.", "What is the capital of France?")
        return (yield Request(prompt, "planner", lambda t: "." in t, 12, 0.0, 0, fresh=True))

    ((_, reply),) = decode(policy, [ask()])
    assert "Paris" in reply.text


def test_decoding_leaves_the_frozen_weights_as_they_were(policy, rows):
    linear = next(m for m in policy.model.modules() if isinstance(m, Linear4bit))
    before, (first, _) = linear.weight.data.clone(), gradient(policy, rows[0])
    with policy.decoding("default"):
        policy.causal_lm(input_ids=torch.tensor([rows[0].ids]))
    second, _ = gradient(policy, rows[0])
    assert torch.equal(linear.weight.data, before) and torch.equal(first, second) and first.norm() > 0


def test_gradient_parity_with_the_dequantised_weights(policy, rows):
    quantised, loss = gradient(policy, rows[0])
    replaced = []
    for module in policy.model.modules():
        base = getattr(module, "base_layer", None)
        if isinstance(base, Linear4bit):
            plain = torch.nn.Linear(base.in_features, base.out_features, bias=False)
            plain.weight = torch.nn.Parameter(
                dequantize_4bit(base.weight.data, base.weight.quant_state).float(), requires_grad=False
            )
            replaced.append((module, base))
            module.base_layer = plain
    try:
        plain_gradient, plain_loss = gradient(policy, rows[0])
    finally:
        for module, base in replaced:
            module.base_layer = base
    assert len(replaced) == 210 and loss == pytest.approx(plain_loss, abs=1e-4)
    assert torch.nn.functional.cosine_similarity(quantised, plain_gradient, dim=0) > 0.9998


def test_ratio_is_one_before_the_first_update_and_training_moves_it(config, policy, rows, tmp_path):
    scored = training.score(policy, rows, batch_tokens=1024)
    run = Run.open(tmp_path, "rl", {}, {})
    rl = config.change(rl_batch=len(rows), rl_epochs=3, rl_warmup=1, il_batch=1, max_kl=10.0).rl
    training.joint_rl(policy, scored, rows, rl, config.sft, run, seed=0)
    metrics = run.metrics()
    assert metrics[0]["ratio_mean"] == pytest.approx(1, abs=1e-3)
    assert metrics[0]["ratio_max"] == pytest.approx(1, abs=1e-3) and metrics[0]["kl"] < 1e-6
    assert metrics[-1]["kl"] > 1e-5 and metrics[-1]["ratio_mean"] > 1.05  # the rewarded rows became more probable


def test_in_bfloat16_log_probs_are_float32_and_the_ratio_is_one_on_average(config, rows):
    policy = Policy.load(config.change(compute_dtype="bfloat16").policy)
    groups = [training.score(policy, rows, 1024), [training.score(policy, [row], 1024)[0] for row in rows]]
    together, alone = (torch.tensor([p for row in group for p in row.behaviour_logp]) for group in groups)
    mask = torch.tensor([m for row in rows for m in row.mask]).bool()
    difference = (together - alone)[mask]
    # how far a row is from itself in another batch depends on the processor's kernels: 3 % a token with AMX
    error = float(difference.exp().std()) / len(difference) ** 0.5
    metrics = losses.ratio_metrics(difference, eps=0.3)
    assert metrics["ratio_mean"] == pytest.approx(1, abs=max(1e-3, 3 * error)) and metrics["kl"] < 1e-3
    batch = collate(rows[:1], policy.tokenizer.pad_token_id, policy.device)
    with torch.no_grad():
        logp = policy.log_probs(batch.ids_BT, batch.mask_BT, "planner")[batch.mask_BT.bool()]
    assert logp.dtype == torch.float32
    assert (logp != logp.bfloat16().float()).float().mean() > 0.9, "computed in float32, not only stored so"


def test_it_plays_real_episodes_whose_log_probs_the_trainer_agrees_with(config, policy):
    env, tasks = stages.environment(config), stages.task_sets(config)["test"]
    how = config.change(max_action_tokens=24, max_steps=2).rollout
    played = dict(rollout.rollouts(policy, env, [(task, 1) for task in tasks], how))
    made = []
    for trajectory in played.values():
        assert len(trajectory.trials) == 2 and len(trajectory.reflections) == 1
        made += [examples._planner_example(policy, env, trajectory, trial, True) for trial in trajectory.trials]
        made.append(examples._reflector_example(policy, env, trajectory, 1, trajectory.reflections[0], False))
    for example in training.score(policy, made, batch_tokens=1024):
        ours, theirs = (
            torch.tensor(p)[torch.tensor(example.mask).bool()] for p in (example.behaviour_logp, example.sampled_logp)
        )
        assert len(ours) and ours.tolist() == pytest.approx(theirs.tolist(), abs=1e-2)
    assert training.sampler_gap(training.score(policy, made, 1024)) < 1e-3
    elsewhere = [dataclasses.replace(e, ids=[*e.ids[:20], *e.ids[:20], *e.ids[40:]]) for e in made]
    assert training.sampler_gap(training.score(policy, elsewhere, 1024)) > 0.05, "another prompt than was read"


def test_the_authors_rows_become_examples(policy, tmp_path):
    trial = "Thought 1: Look.\nAction 1: execute[SHOW TABLES]\nObservation 1: [('singer',)]\nThought 2: Done.\n"
    trial += "Action 2: submit"
    written = [
        {"input": "Question: How many?", "output": trial, "type": "planner", "reward": 0.5},
        {
            "input": "It failed.",
            "output": " I should count.",
            "type": "reflector",
            "last_reward": 0.5,
            "current_reward": 1.0,
        },
        {"input": "It failed.", "output": "", "type": "reflector", "last_reward": 0.0, "current_reward": 1.0},
    ]
    (tmp_path / "rl.json").write_text(json.dumps(written))
    planner, reflector = authors_examples(policy, tmp_path / "rl.json")
    agent = policy.tokenizer.decode([i for i, m in zip(planner.ids, planner.mask, strict=True) if m])
    assert "SHOW TABLES" in agent and "submit" in agent and "singer" not in agent and "How many" not in agent
    assert (planner.reward, reflector.reward, reflector.role) == (0.5, 0.75, "reflector")
