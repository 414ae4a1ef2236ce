"""How fast the game engine is with many games at once: as its packages have it, and with `worker`'s caches.

    python -m retroact_lib.envs.alfworld.speed > results/laptop/alfworld/choices/engine_speed.csv

One process each plays the same commands in all games, a step in each in turn. Times are wall-clock.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import pandas as pd

from retroact_lib.envs.alfworld.engine import Engine
from retroact_lib.envs.alfworld.env import ALFWorld
from retroact_lib.envs.base import Task

STEPS = 12


def measure(env: ALFWorld, tasks: Sequence[Task], steps: int = STEPS) -> pd.DataFrame:
    """Seconds to open a game for the first and for the second time, and steps a second: a row for each engine.

    The steps are the games' walkthroughs without the last, begun again until there are `steps`.
    """
    rows = []
    for name, engine in (("stock", Engine(stock=True)), ("cached", Engine())):
        plays, seconds = [], {}
        for turn in ("first", "again"):
            for play in plays:
                play.close()
            started = time.perf_counter()
            plays = [engine.open(env.file(task)) for task in tasks]
            seconds[turn] = (time.perf_counter() - started) / len(tasks)
        commands = [(env.solution(task)[:-1] * steps)[:steps] for task in tasks]
        started = time.perf_counter()
        for step in range(steps):
            for play, those in zip(plays, commands, strict=True):
                play.step(those[step])
        rate = steps * len(tasks) / (time.perf_counter() - started)
        for play in plays:
            play.close()
        engine.close()
        rows.append(
            {
                "engine": name,
                "games": len(tasks),
                "steps": steps * len(tasks),
                "open_first_s": round(seconds["first"], 3),
                "open_again_s": round(seconds["again"], 3),
                "steps_per_s": round(rate, 1),
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    env = ALFWorld()
    measure(env, env.tasks("validation", 16)).to_csv(sys.stdout, index=False)
