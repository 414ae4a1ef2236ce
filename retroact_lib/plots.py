"""Figures: functions that take a table and an `ax` and return the `ax`. No statistics are made here.

One colour per method across all figures (Okabe and Ito's palette, safe for colour-blind readers), bands for 95 %
intervals, n in the label.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

ARMS = {
    "base": ("Base model", "#999999"),
    "sft": ("SFT (imitation)", "#0072B2"),
    "retroact": ("RetroAct", "#D55E00"),
    "no_il": ("no IL regulariser", "#CC79A7"),
    "planner_only": ("planner examples only", "#E69F00"),
    "reflector_only": ("reflector examples only", "#56B4E9"),
    "unmasked": ("observations not masked", "#F0E442"),
    "ppo": ("ppo objective", "#009E73"),
    "separate_adapters": ("separate adapters", "#7F5F3F"),
    "continued_sft": ("continued SFT", "#004488"),
    "plain_retry": ("RetroAct, plain retry", "#882255"),
}
"""Arm -> (label, colour)."""


def label(arm: str) -> str:
    return ARMS[arm][0]


def success_by_trial(summary: pd.DataFrame, ax: plt.Axes, arms: Sequence[str] = ("base", "sft", "retroact")):
    """Share of tasks solved by trial k, one line per arm. `summary`: as `evaluation.summarise` gives it, one split."""
    for arm in arms:
        rows = summary[summary["arm"] == arm].sort_values("trial")
        if rows.empty:
            continue
        name, colour = ARMS[arm]
        ax.plot(
            rows["trial"], 100 * rows["success"], marker="o", color=colour, label=f"{name} (n = {rows['n'].iloc[0]})"
        )
        ax.fill_between(
            rows["trial"], 100 * rows["success_low"], 100 * rows["success_high"], color=colour, alpha=0.15, lw=0
        )
    ax.set(xlabel="trial k", ylabel="tasks solved by trial k (%)", ylim=(-2, 102))
    ax.set_xticks(sorted(summary["trial"].unique()))
    ax.legend(frameon=False, fontsize="small")
    return ax


def arms_compared(summary: pd.DataFrame, ax: plt.Axes, column: str = "success"):
    """One bar per arm with its interval, best on top. `summary`: one split, one mode, one trial."""
    rows = summary[summary["arm"].isin(ARMS)].sort_values(column)
    middle = 100 * rows[column]
    spread = [middle - 100 * rows[f"{column}_low"], 100 * rows[f"{column}_high"] - middle]
    ax.barh(
        [label(a) for a in rows["arm"]],
        middle,
        xerr=spread,
        color=[ARMS[a][1] for a in rows["arm"]],
        error_kw={"elinewidth": 1, "capsize": 2},
    )
    for y, value in enumerate(middle):
        ax.text(1, y, f"{value:.0f}", va="center", color="white", fontweight="bold", fontsize="small")
    ax.set(
        xlabel=f"{'tasks solved' if column == 'success' else 'mean reward'} (%), n = {rows['n'].min()}", xlim=(0, 100)
    )
    return ax


def headline(summary: pd.DataFrame, ax: plt.Axes):
    """Base model, Reflexion (the base model with reflections), SFT and RetroAct on the test split, with intervals.

    The base model plays one greedy trial, the others all sampled ones. `summary`: as `evaluation.summarise` gives it.
    """
    test = summary[summary["split"] == "test"]
    trials = test["trial"].max()
    greedy = test[test["mode"] == "greedy"].set_index("arm")
    last = test[(test["mode"] == "sampled") & (test["trial"] == trials)].set_index("arm")
    places = {label("base"): (greedy, "base"), "Reflexion": (last, "base")}
    places |= {label(arm): (last, arm) for arm in ("sft", "retroact")}
    found = {name: table.loc[arm] for name, (table, arm) in places.items() if arm in table.index}
    rows = pd.DataFrame(found.values())
    middle = 100 * rows["success"].to_numpy(float)
    spread = [middle - 100 * rows["success_low"].to_numpy(float), 100 * rows["success_high"].to_numpy(float) - middle]
    colours = [ARMS[arm][1] for arm in rows.index]
    ax.bar(list(found), middle, yerr=spread, color=colours, error_kw={"lw": 1, "capsize": 2})
    for x, value in enumerate(middle):
        ax.text(x, 2, f"{value:.0f}", ha="center", color="white" if value else "black", fontweight="bold")
    ax.tick_params(axis="x", rotation=20)
    ax.set(ylim=(0, 100), xlabel=f"by trial {trials}, n = {rows['n'].min()}, seeds: {rows['seeds'].min()}")
    ax.set_ylabel("tasks solved (%)")
    return ax


def success_by_family(summary: pd.DataFrame, ax: plt.Axes, arms: Sequence[str] = ("sft", "retroact")):
    """Success for each kind of question, one dot per arm with its interval."""
    families = sorted(summary["family"].unique())
    for i, arm in enumerate(arms):
        rows = summary[summary["arm"] == arm].set_index("family").reindex(families)
        y = [j + (i - (len(arms) - 1) / 2) * 0.25 for j in range(len(families))]
        middle = 100 * rows["success"]
        spread = [middle - 100 * rows["success_low"], 100 * rows["success_high"] - middle]
        ax.errorbar(middle, y, xerr=spread, fmt="o", color=ARMS[arm][1], label=label(arm), elinewidth=1, markersize=4)
    counts = summary.groupby("family")["n"].max()
    ax.set_yticks(range(len(families)), [f"{f} (n = {counts[f]})" for f in families])
    ax.set(xlabel="tasks solved (%)", xlim=(-3, 103))
    ax.legend(frameon=False, fontsize="small")
    return ax


def learning_curve(families: pd.DataFrame, everything: pd.DataFrame, ax: plt.Axes):
    """Success after each epoch: one line for each kind of task, all tasks in black with their band.

    Both tables are as `evaluation.summarise` gives them, by epoch and family and by epoch.
    """
    colours = [colour for _, colour in ARMS.values()]
    for i, (family, rows) in enumerate(families.groupby("family")):
        name = f"{family} (n = {rows['n'].min()})"
        ax.plot(
            rows["epoch"], 100 * rows["success"], marker="o", ms=4, lw=1, color=colours[i % len(colours)], label=name
        )
    epoch, n = everything["epoch"], everything["n"].min()
    ax.plot(epoch, 100 * everything["success"], color="black", lw=2.5, label=f"all (n = {n}), 95 % interval")
    ax.fill_between(
        epoch, 100 * everything["success_low"], 100 * everything["success_high"], color="black", alpha=0.1, lw=0
    )
    ax.set(xlabel="epochs of imitation", ylabel="validation tasks solved (%)", ylim=(-2, 102))
    ax.set_xticks(sorted(epoch))
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def training_curve(metrics: pd.DataFrame, ax: plt.Axes, columns: dict[str, str], ylabel: str):
    """Columns of a run's metrics over its updates; `columns` maps a column to its label."""
    colours = ("#0072B2", "#D55E00", "#009E73")
    for colour, (column, name) in zip(colours, columns.items(), strict=False):
        if column in metrics:
            ax.plot(metrics["update"], metrics[column], color=colour, label=name)
    ax.set(xlabel="update", ylabel=ylabel)
    ax.legend(frameon=False, fontsize="small")
    return ax


def importance_ratios(metrics: pd.DataFrame, axes: Sequence[plt.Axes], eps: float):
    """Ratio with its clip range, share of tokens clipped, and KL to the behaviour policy: three axes."""
    training_curve(metrics, axes[0], {"ratio_mean": "mean", "ratio_max": "max"}, "importance ratio")
    axes[0].axhspan(1 - eps, 1 + eps, color="#999999", alpha=0.2, lw=0)
    axes[0].set_yscale("log")
    training_curve(metrics, axes[1], {"clip_fraction": "tokens outside the clip range"}, "share of agent tokens")
    training_curve(metrics, axes[2], {"kl": "KL estimate"}, "nats per token")
    return axes


def save(figure: plt.Figure, path: Path) -> Path:
    """Write a PNG without a date or version inside, so that the same figure is the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"Software": None})
    return path
