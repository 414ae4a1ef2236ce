"""What an agent does about what it reads: how long trials are, what follows an error, and why trials fail.

    table = reactions.trial_table(environment, tasks, trajectories)
    reactions.summary(table), reactions.causes(table), reactions.lengths(table)

The environment says which observations are errors and why a trial failed (`Env.is_error`, `Env.cause`).
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from retroact_lib.envs.base import Env, Task
from retroact_lib.evaluation import bootstrap_interval
from retroact_lib.trajectories import Trajectory


def trial_table(env: Env, tasks: Iterable[Task], trajectories: Iterable[Trajectory]) -> pd.DataFrame:
    """One row a trial: task, family, trial, success, steps, errors read before the last step, and the cause of failure.

    Raises ValueError for a trajectory whose task is not among `tasks`.
    """
    by_id = {task.id: task for task in tasks}
    rows = []
    for trajectory in trajectories:
        task = by_id.get(trajectory.task_id)
        if task is None:
            raise ValueError(f"No task {trajectory.task_id!r} is among the tasks; expected those that were played.")
        for k, trial in enumerate(trajectory.trials, 1):
            read = [turn.observation for turn in trial.turns[:-1]]
            rows.append(
                {
                    "task": trajectory.task_id,
                    "family": trajectory.family,
                    "trial": k,
                    "success": int(trial.success),
                    "steps": len(trial.turns),
                    "errors": sum(map(env.is_error, read)),
                    "cause": "" if trial.success else env.cause(task, trial),
                }
            )
    return pd.DataFrame(rows, columns=["task", "family", "trial", "success", "steps", "errors", "cause"])


def summary(table: pd.DataFrame, resamples: int = 10_000) -> pd.DataFrame:
    """Shares in % with 95 % intervals over trials: solved, error read, solved after one, failed by handing one in."""
    erred, failed = table[table["errors"] > 0], table[table["success"] == 0]
    shares = {
        "trials solved": table["success"],
        "trials that read an error": table["errors"] > 0,
        "solved, of those that read an error": erred["success"],
        "error submitted, of those that failed": failed["cause"] == "error submitted",
    }
    rows = []
    for name, values in shares.items():
        mean, low, high = bootstrap_interval(values, resamples) if len(values) else (float("nan"),) * 3
        rows.append({"share": name, "n": len(values), "%": 100 * mean, "low": 100 * low, "high": 100 * high})
    return pd.DataFrame(rows).set_index("share")


def causes(table: pd.DataFrame) -> pd.DataFrame:
    """Failed trials by cause, the most frequent first: how many, and their share of the failures in %."""
    failed = table[table["success"] == 0]
    counts = failed["cause"].value_counts().rename("trials").to_frame()
    return counts.assign(share=100 * counts["trials"] / max(len(failed), 1))


def lengths(table: pd.DataFrame) -> pd.DataFrame:
    """How many trials took so many steps, those solved and those not."""
    ended = table["success"].map({1: "solved", 0: "failed"})
    return pd.crosstab(table["steps"], ended).reindex(columns=["solved", "failed"], fill_value=0)
