"""K-trial episodes with reflections: the planner acts, the evaluator judges, the reflector looks back."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence

from retroact_lib import prompts
from retroact_lib.config import RolloutConfig
from retroact_lib.decoding import Reply, Request, decode
from retroact_lib.envs.base import Env, Task
from retroact_lib.policy import Policy
from retroact_lib.trajectories import Reflection, Trajectory, Trial, Turn


def draw_seed(*parts: object) -> int:
    """A 64-bit seed from names and numbers, the same in every process."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def rollouts(
    policy: Policy, env: Env, episodes: Sequence[tuple[Task, int]], config: RolloutConfig
) -> Iterator[tuple[int, Trajectory]]:
    """Play episodes, each a task and a seed, many at once; yields (position in `episodes`, trajectory) as each ends.

    Every draw is seeded by (seed, task, trial, step), so a result depends on neither batch size nor order.
    """
    if not episodes:
        raise ValueError("There are no episodes to roll out.")
    return decode(policy, (play(policy, env, task, config, seed) for task, seed in episodes), rows=config.rows)


def play(
    policy: Policy, env: Env, task: Task, config: RolloutConfig, seed: int
) -> Generator[Request, Reply, Trajectory]:
    """Up to K trials at one task with a reflection after each failure, as a conversation with `decode`."""
    trajectory = Trajectory(task.id, task.question, task.family)
    for k in range(config.trials):
        memory = [r.text for r in trajectory.reflections]
        trial = yield from _attempt(policy, env, task, memory, k, config, seed)
        trajectory.trials.append(trial)
        if trial.success or k + 1 == config.trials:
            break
        if config.reflect:
            trajectory.reflections.append((yield from _reflect(policy, trial, task.id, k, config, seed)))
    return trajectory


def _attempt(
    policy: Policy, env: Env, task: Task, memory: list[str], k: int, config: RolloutConfig, seed: int
) -> Generator[Request, Reply, Trial]:
    episode = env.start(task)
    try:
        turns: list[Turn] = []
        repeats = 0
        read = policy.planner_prompt_ids(env.instruction, task.question, memory)
        for step in range(1, config.max_steps + 1):
            reply = yield Request(
                ids=read,
                role="planner",
                stop=prompts.action_complete,
                max_new=config.max_action_tokens,
                temperature=config.temperature,
                seed=draw_seed("planner", seed, task.id, k, step),
                fresh=step == 1,
            )
            _, action = prompts.parse_agent_text(reply.text)
            answer = episode.step(action)
            repeats = repeats + 1 if step > 1 and action == turns[-1].action else 1
            turns.append(Turn(reply.text, action, answer.observation, reply.ids, reply.logps))
            read = policy.encode(prompts.environment_text(step, answer.observation))
            if answer.done or repeats == config.max_repeats or reply.context + len(read) > config.room:
                break
        return Trial(memory[-prompts.MAX_REFLECTIONS :], turns, episode.reward(), episode.success())
    finally:
        episode.close()


def _reflect(
    policy: Policy, trial: Trial, task_id: str, k: int, config: RolloutConfig, seed: int
) -> Generator[Request, Reply, Reflection]:
    last = trial.turns[-1]
    reply = yield Request(
        ids=policy.encode(prompts.failure_text(len(trial.turns), last.observation, trial.reward)),
        role="reflector",
        stop=lambda text: text.endswith("\n"),
        max_new=config.max_reflection_tokens,
        temperature=config.temperature,
        seed=draw_seed("reflector", seed, task_id, k, 0),
    )
    return Reflection(reply.text.strip(), reply.ids, reply.logps)
