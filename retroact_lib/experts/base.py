"""The trial-reflect-retry loop that every expert plays, as the policy does later.

Nothing is labelled good here. A scripted slip that the evaluator accepts is a success, and a careful trial that it
rejects is a failure; which rows train what is decided later from the rewards.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Generator

from retroact_lib import prompts
from retroact_lib.envs.base import Env, Task
from retroact_lib.trajectories import Reflection, Trajectory, Trial, Turn

Steps = Generator[tuple[str, str], str, None]
"""Yields (thought, action), is sent the observation."""


class Session(ABC):
    """An expert's work on one task: attempts, and reflections between them."""

    @abstractmethod
    def attempt(self, reflections: list[str]) -> Steps:
        """Start a trial whose prompt holds `reflections`."""

    @abstractmethod
    def reflect(self, trial: Trial) -> str:
        """One line on the failed `trial`: the mistake and the plan."""


class Expert(ABC):
    """Plays the trial-reflect-retry loop."""

    @abstractmethod
    def session(
        self, env: Env, task: Task, rng: random.Random, mistake_rate: float, max_trials: int, max_steps: int
    ) -> Session:
        """Begin work on `task`."""

    def demonstrate(
        self,
        env: Env,
        task: Task,
        max_trials: int = 3,
        seed: int = 0,
        mistake_rate: float = 0.5,
        max_steps: int | None = None,
        max_repeats: int | None = None,
    ) -> Trajectory:
        """Attempt `task` until a trial succeeds or `max_trials` are over.

        The result depends on the arguments alone. `mistake_rate` is the chance that a scripted expert slips in its
        first trial; other experts make their own mistakes. A trial has at most `max_steps` actions (default: the
        environment's own), or ends when an action comes `max_repeats` times in a row (default: it goes on); cut off
        there, it earns what the evaluator gives its present state.
        Raises ValueError if `max_trials` or `max_steps` is below 1, or `mistake_rate` is not in [0, 1].
        """
        max_steps = env.max_steps if max_steps is None else max_steps
        for name, value in (("max_trials", max_trials), ("max_steps", max_steps)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= mistake_rate <= 1:
            raise ValueError(f"mistake_rate must lie between 0 and 1, got {mistake_rate}")
        session = self.session(env, task, random.Random(seed), mistake_rate, max_trials, max_steps)
        trajectory = Trajectory(task.id, task.question, task.family)
        for k in range(max_trials):
            memory = [r.text for r in trajectory.reflections][-prompts.MAX_REFLECTIONS :]
            trial = _play(env, task, session.attempt(memory), memory, max_steps, max_repeats)
            trajectory.trials.append(trial)
            if trial.success:
                break
            if k + 1 < max_trials:
                trajectory.reflections.append(Reflection(session.reflect(trial)))
        return trajectory


def _play(env: Env, task: Task, steps: Steps, reflections: list[str], max_steps: int, max_repeats: int | None) -> Trial:
    """Carry out an attempt in the environment, which alone decides what it earns."""
    episode = env.start(task)
    turns: list[Turn] = []
    try:
        observation: str | None = None
        while len(turns) < max_steps:
            try:
                thought, action = next(steps) if observation is None else steps.send(observation)
            except StopIteration:
                break
            result = episode.step(action)
            observation = result.observation
            turns.append(Turn(prompts.agent_text(len(turns) + 1, thought, action), action, observation))
            if result.done:
                break
            if max_repeats and [turn.action for turn in turns[-max_repeats:]] == [action] * max_repeats:
                break
        return Trial(list(reflections), turns, float(episode.reward()), episode.success())
    finally:
        steps.close()
        episode.close()


def stable_seed(seed: int, *parts: str) -> int:
    """A 63-bit seed from `seed` and text, the same in every process and on every machine."""
    digest = hashlib.sha256("\x1f".join([str(seed), *parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
