"""Experts that show how a task is done: a scripted one for each environment, and one behind a chat endpoint.

An environment's expert is a module with an `Expert` subclass, and a line in `EXPERTS` and `PARTS`.
"""

from __future__ import annotations

from collections.abc import Iterable

from retroact_lib.envs.base import Env, Task
from retroact_lib.experts.base import Expert, stable_seed
from retroact_lib.experts.household import HouseholdExpert
from retroact_lib.experts.reader import ReaderExpert
from retroact_lib.experts.sql import ScriptedSQLExpert
from retroact_lib.progress import progress
from retroact_lib.trajectories import Trajectory

EXPERTS: dict[str, type[Expert]] = {
    "intercode_sql": ScriptedSQLExpert,
    "hotpotqa": ReaderExpert,
    "alfworld": HouseholdExpert,
}
"""Environment name -> its scripted expert."""
PARTS = {"intercode_sql": ("sql", "sql_mistakes"), "hotpotqa": ("reader",), "alfworld": ("household",)}
"""Environment name -> the modules of its expert."""


def modules(name: str) -> tuple[str, ...]:
    """The modules of the library whose code an environment's demonstrations depend on, beside the environment's."""
    return tuple(f"experts/{module}" for module in ("base", *PARTS[name]))


def expert_for(env: Env) -> Expert:
    """The scripted expert of an environment; ValueError if it has none."""
    if env.name not in EXPERTS:
        raise ValueError(f"no scripted expert for the environment {env.name!r}; there is one for {', '.join(EXPERTS)}")
    return EXPERTS[env.name]()


def expert_trajectories(
    env: Env,
    tasks: Iterable[Task],
    max_trials: int = 3,
    seed: int = 0,
    mistake_rate: float = 0.5,
    expert: Expert | None = None,
    max_steps: int | None = None,
    max_repeats: int | None = None,
) -> list[Trajectory]:
    """One trajectory per task, in order, by `expert` (default: the environment's scripted one).

    Each task has its own seed from (seed, task.id), so a trajectory does not depend on the other tasks.
    """
    expert = expert or expert_for(env)
    return [
        expert.demonstrate(env, task, max_trials, stable_seed(seed, task.id), mistake_rate, max_steps, max_repeats)
        for task in progress(list(tasks), "Expert", "task")
    ]
