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


def test_seeds_are_averaged_within_tasks_before_resampling():
    import pandas as pd

    rows = pd.concat([table("sft", trajectory("a", 1.0), trajectory("b", 0.0), seed=s) for s in (0, 1)])
    row = evaluation.summarise(rows).iloc[0]
    assert (row["n"], row["seeds"], row["success"]) == (2, 2, 0.5)
    assert (row["success_low"], row["success_high"]) == (0, 1)


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
