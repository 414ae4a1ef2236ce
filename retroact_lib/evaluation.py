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


def bootstrap_interval(value_NS, resamples: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % percentile bootstrap interval: (mean, low, high).

    Values [N] are resampled over N tasks (Efron 1979), values [N, S] over N tasks and S seeds, see
    `bootstrap_means`. Raises ValueError without values.
    """
    low, high = np.percentile(bootstrap_means(value_NS, resamples, seed), (2.5, 97.5))
    return float(np.nanmean(np.asarray(value_NS, dtype=float))), float(low), float(high)


def bootstrap_means(value_NS, resamples: int = 10_000, seed: int = 0) -> np.ndarray:
    """Means of `resamples` resamples of values [N] over tasks, or [N, S] over tasks and seeds, NaN where none is known.

    Tasks and seeds are drawn with replacement and apart from each other (Owen 2007), so a difference that one seed
    alone makes has a wide interval. Few seeds tell little about others: with three, intervals are still too narrow.
    """
    value_NS = np.asarray(value_NS, dtype=float)
    if value_NS.size == 0:
        raise ValueError("There are no values to resample.")
    if value_NS.size == 1:
        return value_NS.reshape(1)
    draws = np.random.default_rng(seed)
    if value_NS.ndim == 1 or value_NS.shape[1] == 1:
        drawn = bootstrap((value_NS.reshape(-1),), np.mean, n_resamples=resamples, method="percentile", rng=draws)
        return drawn.bootstrap_distribution
    known_NS = np.isfinite(value_NS)
    task_RN, seed_RS = (draws.multinomial(size, np.full(size, 1 / size), resamples) for size in value_NS.shape)
    total_R = ((task_RN @ np.where(known_NS, value_NS, 0.0)) * seed_RS).sum(1)
    count_R = ((task_RN @ known_NS.astype(float)) * seed_RS).sum(1)
    return total_R[count_R > 0] / count_R[count_R > 0]


def summarise(table: pd.DataFrame, by: Iterable[str] = ("arm", "split", "mode", "trial"), resamples: int = 10_000):
    """Success, reward and number of steps for every group, in the table's order, with intervals over tasks and seeds.

    `n` counts the tasks and `seeds` the seeds.
    """
    by = list(by)
    rows = []
    for key, group in table.groupby(by, sort=False):
        row = dict(zip(by, key, strict=True), n=group["task"].nunique(), seeds=group["seed"].nunique())
        for name in MEASURES:
            mean, low, high = bootstrap_interval(group.pivot_table(name, "task", "seed"), resamples)
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


def compare(
    table: pd.DataFrame,
    arm: str,
    other: str,
    column: str = "success",
    resamples: int = 10_000,
    by: Iterable[str] = ("split", "mode", "trial"),
) -> pd.DataFrame:
    """Difference `arm` - `other` for each group of `by`, paired over the tasks and seeds that both attempted.

    Intervals are over tasks and seeds. `p` is two-sided, twice the share of resamples on the far side of zero, and
    `detectable` the smallest difference that a test at 5 % would have found with a power of 80 %: 2.8 standard errors.
    """
    by, rows = list(by), []
    for key, group in table.groupby(by, sort=False):
        both = group.pivot_table(index=["task", "seed"], columns="arm", values=column)
        if not {arm, other} <= set(both.columns):
            continue
        difference_NS = (both[arm] - both[other]).dropna().unstack("seed")
        means = bootstrap_means(difference_NS, resamples)
        low, high = np.percentile(means, (2.5, 97.5))
        beyond = min((means <= 0).sum(), (means >= 0).sum())
        rows.append(
            dict(
                arm=arm,
                other=other,
                **dict(zip(by, key, strict=True)),
                n=len(difference_NS),
                seeds=difference_NS.shape[1],
                difference=float(np.nanmean(difference_NS)),
                low=float(low),
                high=float(high),
                p=min(1.0, 2 * (beyond + 1) / (len(means) + 1)),
                detectable=2.8 * float(means.std()),
            )
        )
    return pd.DataFrame(rows)


def reflection_gains(table: pd.DataFrame, by: Iterable[str], resamples: int = 10_000) -> pd.DataFrame:
    """What reflections add to plain retry in each group of `by`: the mode ``sampled`` minus ``retry``, paired."""
    modes = table[table["mode"].isin(("sampled", "retry"))]
    return compare(modes.assign(arm=modes["mode"]), "sampled", "retry", resamples=resamples, by=by)


def retry_gains(retries: pd.DataFrame, resamples: int = 10_000) -> pd.DataFrame:
    """What reflections add to plain retry of failed training trials after each round, paired over their tasks.

    `retries` is as `stages.training_retries` gives it.
    """
    arms = retries.melt(["round", "seed", "task"], ["reflected", "retried"], "arm", "reward")
    return compare(arms, "reflected", "retried", "reward", resamples, by=["round"])


def holm(p_values: Iterable[float]) -> list[float]:
    """p-values of several claims, corrected so that all of them together are wrong in 5 % (Holm 1979), in order."""
    p = np.asarray(list(p_values), dtype=float)
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected.tolist()
