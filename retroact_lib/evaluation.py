"""Success, reward and steps by trial, with bootstrap intervals: statistics alone, apart from models and plots.

The unit of everything is the outcome table: one row per (arm, split, mode, seed, task, trial) with `success` (solved
by this trial or before), `reward` and `steps` (of the last attempt made by then). Tables and figures are computed
from it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from retroact_lib.trajectories import Trajectory

MEASURES = ("success", "reward", "steps")
"""What `summarise` gives means and intervals of."""


def outcomes(trajectories: Iterable[Trajectory], trials: int, **labels: object) -> pd.DataFrame:
    """The outcome table of some trajectories, `trials` rows each; `labels` become columns (arm, split, mode, seed).

    A task solved at trial k counts as solved at every later trial, with the reward and steps of trial k.
    """
    rows = []
    for trajectory in trajectories:
        for k in range(trials):
            last = trajectory.trials[min(k, len(trajectory.trials) - 1)]
            rows.append(
                {
                    **labels,
                    "task": trajectory.task_id,
                    "family": trajectory.family,
                    "trial": k + 1,
                    "success": int(last.success),
                    "reward": round(last.reward, 4),
                    "steps": len(last.turns),
                }
            )
    if not rows:
        raise ValueError("There are no trajectories to evaluate.")
    return pd.DataFrame(rows)


def bootstrap_interval(value_N, resamples: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % percentile bootstrap interval (Efron 1979) over N values: (mean, low, high)."""
    value_N = np.asarray(value_N, dtype=float)
    if value_N.size == 0:
        raise ValueError("There are no values to resample.")
    mean = float(value_N.mean())
    if value_N.size == 1:
        return mean, mean, mean
    draws = np.random.default_rng(seed)
    found = bootstrap((value_N,), np.mean, n_resamples=resamples, method="percentile", rng=draws)
    return mean, float(found.confidence_interval.low), float(found.confidence_interval.high)


def summarise(table: pd.DataFrame, by: Iterable[str] = ("arm", "split", "mode", "trial"), resamples: int = 10_000):
    """Success, reward and number of steps with intervals for every group, in the table's order.

    Seeds of the same task are averaged first, so the interval is over the n tasks; `seeds` says how many there were.
    """
    by = list(by)
    rows = []
    for key, group in table.groupby(by, sort=False):
        task = group.groupby("task")[list(MEASURES)].mean()
        row = dict(zip(by, key, strict=True), n=len(task), seeds=group["seed"].nunique())
        for name in MEASURES:
            mean, low, high = bootstrap_interval(task[name], resamples)
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def last_trials(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the greedy trial and of the last sampled one."""
    return table[(table["mode"] == "greedy") | (table["trial"] == table["trial"].max())]


def shared_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the seeds in which every arm was run, so that like is compared with like."""
    seeds = set.intersection(*(set(rows["seed"]) for _, rows in table.groupby("arm")))
    return table[table["seed"].isin(seeds)]


def compare(table: pd.DataFrame, arm: str, other: str, column: str = "success", resamples: int = 10_000):
    """Paired difference `arm` - `other` per split, mode and trial, over the tasks and seeds that both attempted."""
    rows = []
    for (split, mode, trial), group in table.groupby(["split", "mode", "trial"], sort=False):
        both = group.pivot_table(index=["task", "seed"], columns="arm", values=column)
        if not {arm, other} <= set(both.columns):
            continue
        difference = (both[arm] - both[other]).dropna().groupby("task").mean()
        mean, low, high = bootstrap_interval(difference, resamples)
        rows.append(
            dict(
                arm=arm,
                other=other,
                split=split,
                mode=mode,
                trial=trial,
                n=len(difference),
                difference=mean,
                low=low,
                high=high,
            )
        )
    return pd.DataFrame(rows)
