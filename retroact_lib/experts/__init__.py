"""Experts that show how a task is done: a scripted one in each environment's package, one behind a chat endpoint."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from importlib import import_module

from retroact_lib.envs.base import Env, Task
from retroact_lib.experts.base import Expert
from retroact_lib.progress import progress
from retroact_lib.trajectories import Trajectory, Trial
from retroact_lib.trials import draw_seed


def expert_for(env: Env) -> Expert:
    """The scripted expert of an environment: the `Expert` in the module ``expert`` of its package.

    Raises ValueError if it has none.
    """
    name = f"retroact_lib.envs.{env.name}.expert"
    try:
        found = vars(import_module(name)).values()  # loaded when it is asked for: experts are made of this package
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
        raise ValueError(f"the environment {env.name!r} has no scripted expert; name another expert.") from None
    (expert,) = (c for c in found if isinstance(c, type) and issubclass(c, Expert) and c.__module__ == name)
    return expert()


def expert_trajectories(
    env: Env,
    tasks: Iterable[Task],
    max_trials: int = 3,
    seed: int = 0,
    mistake_rate: float = 0.5,
    expert: Expert | None = None,
    max_steps: int | None = None,
    max_repeats: int = 0,
) -> list[Trajectory]:
    """One trajectory per task, in order, by `expert` (default: the environment's scripted one).

    Each task has its own seed from (seed, task.id), so a trajectory does not depend on the other tasks.
    """
    expert = expert or expert_for(env)
    return [
        expert.demonstrate(env, task, max_trials, draw_seed(seed, task.id), mistake_rate, max_steps, max_repeats)
        for task in progress(list(tasks), "Expert", "task")
    ]


def corrections(
    env: Env,
    tasks: Iterable[Task],
    trajectories: Iterable[Trajectory],
    seed: int = 0,
    expert: Expert | None = None,
    max_steps: int | None = None,
    max_repeats: int = 0,
) -> list[Trajectory]:
    """What the expert shows on the first trials of `trajectories` that went wrong.

    It ends such a trial. One that read an error is cut after one of its errors. One that failed without an error is cut
    anywhere before its last two turns. Where, is drawn. It is not ended where no such turn leaves the expert two steps.
    If the trial failed, the expert also reflects on the whole of it and plays the next one (`Expert.advise`). What the
    expert fails too is left out, and a trial that cannot be played again is left out with a warning. Raises
    KeyError for a trajectory whose task is not among `tasks`.
    """
    expert, by_id = expert or expert_for(env), {task.id: task for task in tasks}
    most = env.max_steps if max_steps is None else max_steps
    made = []
    for trajectory in progress(list(trajectories), "Corrections", "trial"):
        task, trial = by_id[trajectory.task_id], trajectory.trials[0]
        rng = random.Random(draw_seed(seed, task.id))
        ends = [n for n in _wrong_turns(env, trial) if n < len(trial.turns) and n + 2 <= most]
        ways = [partial(expert.correct, env, task, trial.turns[: rng.choice(ends)])] if ends else []
        ways += [partial(expert.advise, env, task, trial)] if not trial.success else []
        for way in ways:
            try:
                shown = way(rng.getrandbits(31), max_steps, max_repeats)
            except (ValueError, RuntimeError) as error:  # one trial that cannot be played again is no reason to stop
                warnings.warn(f"A trial at task {task.id} is left uncorrected: {error}", stacklevel=2)
                continue
            if shown and shown.trials[-1].success:
                made.append(shown)
    return made


def _wrong_turns(env: Env, trial: Trial) -> Sequence[int]:
    """After how many turns somebody who knows better may take over: after errors, or else before the last two turns."""
    turns = trial.turns
    errors = [n for n, turn in enumerate(turns, 1) if env.is_error(turn.observation) and not env.ends(turn.action)]
    return errors or ([] if trial.success else range(1, len(turns) - 1))
