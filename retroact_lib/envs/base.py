"""What the rest of the library asks of an environment: tasks, episodes, rewards.

An environment hands out `Task`s by split and opens an `Episode` for one attempt ("trial") at a task.
It never sees a model; agents reach it only through action strings such as ``execute[SHOW TABLES]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Task:
    """One thing to do. `id` is unique within its environment and stable across runs and machines."""

    id: str
    question: str
    family: str
    """The kind of question (``count``, ``join``, ...), the unit of the tables by type."""
    meta: dict = field(default_factory=dict, hash=False, compare=False)
    """What the evaluator and a scripted expert need (database, gold SQL, ...); JSON values only."""


@dataclass(frozen=True)
class Step:
    """The environment's answer to one action."""

    observation: str
    done: bool = False
    reward: float = 0.0
    """The evaluator's verdict in [0, 1]; 0 until `done`."""


class Episode(ABC):
    """One trial at one task. Not thread-safe; close it when the trial is over."""

    @abstractmethod
    def step(self, action: str) -> Step:
        """Carry out one action. Malformed text is answered by an error observation, never by an exception."""

    @abstractmethod
    def reward(self) -> float:
        """The evaluator's verdict in [0, 1] on the present state: what a trial cut off at the step limit earns."""

    def success(self) -> bool:
        """Whether the trial, as it stands, has reached its end: by default, the full reward."""
        return self.reward() >= 1.0

    def close(self) -> None:  # noqa: B027
        """Give back what the episode holds."""


class Env(ABC):
    """A source of tasks and episodes."""

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    """Names accepted by `tasks`; no database, room or entity is shared between train, validation and test."""
    written_splits: ClassVar[tuple[str, ...]] = ()
    """Those of `splits` whose tasks people wrote; their families are never filtered."""
    titles: ClassVar[dict[str, str]]
    """Split -> what figures call it; of the splits that are evaluated."""
    world: ClassVar[str]
    """What a task is set in (``database``, ``room``): splits that are held out share none with training."""
    options: ClassVar[tuple[str, ...]] = ()
    """Fields of `config.DataConfig` that the constructor takes beside `data`, by the same names."""
    instruction: ClassVar[str]
    """The planner's instruction: the goal, the format, the actions."""
    max_steps: ClassVar[int]
    """Default number of actions in a trial."""

    @abstractmethod
    def tasks(self, split: str, limit: int | None = None, seed: int = 0, families: Collection[str] = ()) -> list[Task]:
        """Tasks of a split, families interleaved, in an order fixed by `seed`; the first `limit` of them.

        Only those of `families`, if some are named. Raises ValueError for an unknown split or family, or a limit that
        the split cannot meet.
        """

    @abstractmethod
    def world_of(self, task: Task) -> str:
        """The database, room, ... that the task is set in."""

    @abstractmethod
    def solution(self, task: Task) -> str:
        """What solves the task, for a person to read."""

    @abstractmethod
    def start(self, task: Task) -> Episode:
        """Open an episode for `task`."""
