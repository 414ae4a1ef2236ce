"""Tables and intervals against values worked out by hand."""

import numpy as np
import pytest

from retroact_lib import evaluation
from retroact_lib.trajectories import Trajectory, Trial


def trajectory(name, *rewards):
    return Trajectory(name, "?", "count", [Trial([], [], r, r == 1.0) for r in rewards])


def table(arm, *trajectories, seed=0):
    return evaluation.outcomes(trajectories, 3, arm=arm, split="test", mode="sampled", seed=seed)


def test_a_solved_task_stays_solved_and_a_later_attempt_replaces_an_earlier_one():
    rows = table("sft", trajectory("a", 1.0), trajectory("b", 0.5, 0.0, 1.0), trajectory("c", 0.2, 0.4, 0.1))
    by_trial = rows.groupby("trial")[["success", "reward"]].mean()
    assert by_trial["success"].tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert by_trial["reward"].tolist() == pytest.approx([1.7 / 3, 1.4 / 3, 2.1 / 3])


def test_bootstrap_interval_covers_what_it_should():
    mean, low, high = evaluation.bootstrap_interval([0] * 50 + [1] * 50)
    assert mean == 0.5
    # normal approximation: 0.5 +- 1.96 * 0.05
    assert low == pytest.approx(0.402, abs=0.012) and high == pytest.approx(0.598, abs=0.012)
    assert evaluation.bootstrap_interval([1, 1, 1]) == (1, 1, 1)
    with pytest.raises(ValueError, match="no values"):
        evaluation.bootstrap_interval([])


def test_tasks_and_seeds_are_resampled_apart_from_each_other():
    draws = np.random.default_rng(0)
    task_N, seed_S = draws.normal(0, 1, 50), np.array([-1.0, 0.0, 1.0])
    means = evaluation.bootstrap_means(task_N[:, None] + seed_S)
    # the means of resampled tasks and of resampled seeds are independent, and their variances add up
    assert means.std() == pytest.approx(np.sqrt(task_N.var() / 50 + seed_S.var() / 3), rel=0.03)
    alone = evaluation.bootstrap_means(task_N[:, None])
    assert alone.std() == pytest.approx(np.sqrt(task_N.var() / 50), rel=0.03)
    assert (alone == evaluation.bootstrap_means(task_N)).all()
    holed = np.array([[1.0, np.nan], [np.nan, 1.0], [1.0, 1.0]])
    assert (evaluation.bootstrap_means(holed) == 1).all()  # a cell that is not known counts nowhere


def test_a_difference_that_one_seed_makes_is_no_evidence():
    import pandas as pd

    tasks = [str(i) for i in range(40)]
    parts = [table("sft", *(trajectory(task, 0.0) for task in tasks), seed=seed) for seed in range(4)]
    parts += [table("ppo", *(trajectory(task, float(seed == 0)) for task in tasks), seed=seed) for seed in range(4)]
    rows = pd.concat(parts)
    row = evaluation.compare(rows, "ppo", "sft").iloc[0]
    assert (row["n"], row["seeds"], row["difference"]) == (40, 4, 0.25) and row["low"] == 0 and row["p"] > 0.3
    alone = evaluation.compare(rows[rows["seed"] == 0], "ppo", "sft").iloc[0]
    assert alone["low"] == 1 and alone["p"] == pytest.approx(2 / 10_001)
    both = evaluation.summarise(rows[rows["arm"] == "ppo"]).iloc[0]
    assert (both["n"], both["seeds"], both["success"], both["success_low"]) == (40, 4, 0.25, 0)


def test_the_smallest_effect_that_could_have_been_seen():
    import pandas as pd

    tasks = range(100)  # of which a quarter is gained and a quarter lost: differences of standard deviation 0.71
    arms = [
        table("ppo", *(trajectory(str(i), float(i % 4 == 0)) for i in tasks)),
        table("sft", *(trajectory(str(i), float(i % 4 == 1)) for i in tasks)),
    ]
    row = evaluation.compare(pd.concat(arms), "ppo", "sft").iloc[0]
    assert row["detectable"] == pytest.approx(2.8 * np.sqrt(0.5 / 100), rel=0.03) and row["p"] > 0.9


def test_reflections_are_compared_with_plain_retry_in_each_round():
    import pandas as pd

    def played(number, mode, *rewards):
        return table("retroact", trajectory("a", *rewards)).assign(round=number, mode=mode)

    first = [played(0, "sampled", 0.0, 0.0), played(0, "retry", 0.0, 0.0), played(0, "greedy", 0.0)]
    last = [played(1, "sampled", 0.0, 1.0), played(1, "retry", 0.0, 0.0), played(1, "greedy", 1.0)]
    gains = evaluation.reflection_gains(pd.concat(first + last), by=("round", "trial"), resamples=10)
    assert gains[["round", "trial", "difference"]].to_numpy().tolist() == [
        [number, trial, float(number == 1 and trial > 1)] for number in (0, 1) for trial in (1, 2, 3)
    ]


def test_holm_by_hand():
    assert evaluation.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert evaluation.holm([0.9, 0.6]) == pytest.approx([1.0, 1.0]) and evaluation.holm([]) == []


def test_paired_difference_is_over_the_same_tasks():
    import pandas as pd

    rows = pd.concat(
        [
            table("retroact", *[trajectory(str(i), float(i < 6)) for i in range(10)]),
            table("sft", *[trajectory(str(i), float(i < 4)) for i in range(10)], trajectory("extra", 1.0)),
        ]
    )
    row = evaluation.compare(rows, "retroact", "sft").iloc[0]
    assert row["n"] == 10 and row["difference"] == pytest.approx(0.2) and row["low"] == pytest.approx(0.0, abs=0.01)
    assert np.isfinite(row["high"]) and evaluation.compare(rows, "retroact", "nobody").empty


def test_only_the_seeds_of_all_arms_and_only_the_last_trials():
    import pandas as pd

    parts = [table("sft", trajectory("a", 1.0), seed=s) for s in (0, 1)] + [table("ppo", trajectory("a", 0.0), seed=1)]
    rows = pd.concat(parts)
    assert set(evaluation.shared_seeds(rows)["seed"]) == {1} and len(evaluation.shared_seeds(rows)) == 6
    assert evaluation.last_trials(rows)["trial"].unique().tolist() == [3]
    assert len(evaluation.last_trials(rows.assign(mode="greedy"))) == len(rows)


def test_nothing_to_evaluate_is_one_sentence():
    with pytest.raises(ValueError, match="no trajectories"):
        evaluation.outcomes([], 3)
