"""K-trial episodes with reflections: the planner acts, the evaluator judges, the reflector looks back."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from retroact_lib import prompts
from retroact_lib.config import RolloutConfig
from retroact_lib.decoding import Reply, Request
from retroact_lib.engines import ENGINES
from retroact_lib.envs.base import Env, Task
from retroact_lib.policy import Policy
from retroact_lib.trajectories import Reflection, Trajectory, Trial
from retroact_lib.trials import Attempt, draw_seed


def rollouts(
    policy: Policy, env: Env, episodes: Sequence[tuple[Task, int]], config: RolloutConfig
) -> Iterator[tuple[int, Trajectory]]:
    """Play episodes, each a task and a seed, many at once; yields (position in `episodes`, trajectory) as each ends.

    Every draw is seeded by (seed, task, trial, step), so a result depends on neither batch size nor order (with the
    engine ``native``).
    """
    if not episodes:
        raise ValueError("There are no episodes to roll out.")
    played = (play(policy, env, task, config, seed) for task, seed in episodes)
    return ENGINES[config.engine](policy, played, config)


def play(
    policy: Policy, env: Env, task: Task, config: RolloutConfig, seed: int
) -> Generator[Request, Reply, Trajectory]:
    """Up to K trials at one task with a reflection after each failure, as a conversation with an engine."""
    trajectory = Trajectory(task.id, task.question, task.family)
    for k in range(config.trials):
        reflections = [r.text for r in trajectory.reflections]
        trial = yield from _attempt(policy, env, task, reflections, k, config, seed)
        trajectory.trials.append(trial)
        if trial.success or k + 1 == config.trials:
            break
        if config.reflect:
            trajectory.reflections.append((yield from _reflect(policy, trial, task.id, k, config, seed)))
    return trajectory


def _attempt(
    policy: Policy, env: Env, task: Task, reflections: list[str], k: int, config: RolloutConfig, seed: int
) -> Generator[Request, Reply, Trial]:
    read = policy.planner_prompt_ids(env.instruction, task.question, reflections)
    with Attempt(env, task, reflections, config.max_steps, config.max_repeats) as attempt:
        while not attempt.over:
            step = attempt.step
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
            observation = attempt.act(reply.text, action, reply.ids, reply.logps)
            read = policy.encode(prompts.environment_text(step, observation))
            if reply.context + len(read) > config.token_budget:
                break
        return attempt.record()


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
