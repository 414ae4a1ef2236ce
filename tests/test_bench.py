"""Notebook 07's measurements: every contender does the same work, and the arithmetic of the tables is right."""

import importlib.util
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from retroact_lib import plots, stages
from retroact_lib.bench import episodes, growth, hardware, updates
from retroact_lib.config import load_config
from retroact_lib.policy import Policy
from tests.test_training import awaken, rows_that_overlap, some_examples

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(tiny_checkpoint):
    return load_config(
        "smoke", checkpoint=tiny_checkpoint, compute_dtype="float32", lora_rank=2, max_steps=2, max_action_tokens=8
    )


@pytest.fixture(scope="module")
def policy(config):
    policy = Policy.load(config.policy, seed=0)
    awaken(policy)
    return policy


def test_contenders_take_turns_and_ratios_are_side_by_side():
    called = []

    def contender(name, rates):
        return lambda number: (called.append((number, name)), {"rate": rates[number]})[1]

    found = hardware.alternate(
        {"a": contender("a", [10.0, 20.0, 60.0, 0.0]), "b": contender("b", [5.0, 20.0, 20.0, 0.0])}, 3, CPU
    )
    assert called == [(n, name) for n in (-1, 0, 1, 2) for name in "ab"]
    assert list(found["contender"]) == ["a", "b"] * 3 and (found["seconds"] > 0).all()
    made = hardware.medians(found, "rate", "a").set_index("contender")
    assert made.loc["b", "rate"] == 20 and made.loc["b", "a is faster"] == 2, "the median of 2, 1 and 3"
    assert made.loc["a", "lowest"] == 10 and made.loc["a", "highest"] == 60 and made.loc["a", "a is faster"] == 1


def test_limits_and_peaks_are_measured():
    found = hardware.machine(CPU, torch.float32)
    assert found["matrix product, GFLOP/s"] > 1 and found["copy, GB/s"] > 0.1 and "float32" in found["data type"]
    with hardware.PeakMemory(CPU) as peak:
        block = np.ones(64 * 2**20)  # half a GiB
        time.sleep(0.05)
    assert block.nbytes == 2**29
    assert peak.gib == pytest.approx(0.5, abs=0.05)


def test_every_contender_takes_an_update_of_the_same_rows(policy, tmp_path):
    before = policy.adapter_state()
    made = updates.contenders(policy, [rows_that_overlap()], tmp_path)
    assert set(made) >= {updates.OURS, "rows one by one", "peft's layers", "Trainer"}
    assert ("TRL" in made) == bool(importlib.util.find_spec("trl"))
    for name, work in made.items():
        policy.load_adapter_state(before)
        assert work(0)["tokens_per_s"] > 0
        moved = [name for name, p in policy.adapter_state().items() if not torch.equal(p, before[name])]
        assert len(moved) == len(before), f"{name} left some adapter weights as they were"
    policy.load_adapter_state(before)
    batch = rows_that_overlap()
    linear = sum(m.in_features * m.out_features for m in policy.linear_layers())
    assert updates.update_flops(policy, batch) == 4 * (linear * 38 + policy.head.weight.numel() * 20)


def test_all_play_the_same_actions(config, policy):
    environment, tasks = stages.environment(config), stages.task_sets(config)["validation"]
    how = replace(config.rollout, trials=1, temperature=0.0)
    found = {name: work(0) for name, work in episodes.contenders(policy, environment, tasks, how, 2).items()}
    ours = found[episodes.OURS]["actions"]
    assert len(ours) == len(tasks) and all(ours)
    for name, other in found.items():
        assert len(other["actions"]) == (2 if "one at a time" in name else len(tasks))
        if "batched" in name:
            assert episodes.same_actions(other["actions"], ours) == 1
    assert episodes.same_actions([["a", "b"], ["c"]], [["a", "x"], []]) == pytest.approx(1 / 3)


def test_growth_is_measured_by_size(policy, tmp_path):
    table = growth.of_updates(policy, [32, 64], [1, 2], tmp_path)
    assert table["value"].tolist() == [32, 64, 1, 2] and (table["seconds"] > 0).all()
    shares = growth.time_by_part(policy, some_examples(2), tmp_path / "parts")
    assert shares.sum() == pytest.approx(100) and shares["matrix products"] > 0 and shares["attention"] > 0
    played = growth.of_rollouts(lambda n: [0] * n, [1, 2], CPU)
    assert played["grows"].unique().tolist() == ["tasks"]
    assert episodes.step_seconds(policy, 2, 40, steps=3) > 0
    shape = policy.causal_lm.config
    cache = 2 * 2 * 40 * shape.num_hidden_layers * shape.num_key_value_heads * 16 * 4
    assert episodes.step_bytes(policy, 2, 40) - episodes.step_bytes(policy, 1, 40) == cache / 2


def test_figures_of_speed():
    import matplotlib.pyplot as plt

    table = pd.DataFrame(
        {"contender": ["RetroAct", "Trainer"], "rate": [200.0, 9.5], "lowest": 9.0, "highest": 210.0, "rounds": 5}
    )
    figure, axes = plt.subplots(1, 4)
    plots.speed(table, axes[0], "rate", "tokens per second")
    assert [text.get_text() for text in axes[0].texts] == ["9.5", "200"] and "5 rounds" in axes[0].get_xlabel()
    grown = pd.DataFrame({"grows": "tasks", "value": [1, 2, 4], "seconds": [1.0, 2.0, 5.0], "peak_gib": 0.1})
    plots.growth(grown, axes[1:3])
    assert axes[1].lines[1].get_ydata().tolist() == [1, 2, 4] and axes[2].get_xlabel() == "tasks"
    plots.parts(pd.Series({"attention": 30.0, "rest": 70.0}), axes[3])
    assert [bar.get_width() for bar in axes[3].patches] == [30, 70]
    plt.close(figure)
