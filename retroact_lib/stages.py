"""The stages of the study: settings in, run directory out. A finished stage returns at once, a killed one goes on.

    demonstrate -> train_sft -> roll_out -> train_joint_rl -> evaluate

Each takes the whole `StudyConfig`, asks the stage before for its run (so any notebook can start anywhere), and reads
only files. What a run depends on is in its key, so arms that share a stage share its work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache

import pandas as pd

from retroact_lib import checkpoints, envs, examples, paths, training
from retroact_lib.config import RolloutConfig, StudyConfig
from retroact_lib.envs.base import Env, Task
from retroact_lib.evaluation import outcomes
from retroact_lib.experts import expert_trajectories
from retroact_lib.policy import Policy
from retroact_lib.progress import bar
from retroact_lib.rollout import draw_seed, rollouts
from retroact_lib.runs import Run, digest_of, replace_folder, write_text
from retroact_lib.trajectories import Trajectory, append_trajectories, read_trajectories, write_trajectories

TRAJECTORIES = "trajectories.jsonl"
ADAPTER = "adapter"

ABLATIONS: dict[str, dict] = {
    "no_il": {"il_weight": 0.0},
    "planner_only": {"roles": "planner"},
    "reflector_only": {"roles": "reflector"},
    "unmasked": {"mask_observations": False},
    "ppo": {"objective": "ppo"},
    "separate_adapters": {"separate_adapters": True},
    "continued_sft": {"pg_weight": 0.0},
    "plain_retry": {},
}
"""Arm of notebook 04 -> the settings in which it differs from the full method."""


def environment(config: StudyConfig) -> Env:
    """The environment that the settings name. Raises ValueError for an unknown one."""
    data = config.data
    return _environment(config.env, data.official_data, data.describe, data.observation_chars)


@lru_cache(maxsize=4)
def _environment(name: str, official_data: str, describe: str, observation_chars: int) -> Env:
    return envs.make(name, data=official_data or None, describe=describe, observation_chars=observation_chars)


def task_sets(config: StudyConfig) -> dict[str, list[Task]]:
    """The tasks of the study by use. `il` and `rl` are disjoint parts of the training split."""
    env, data = environment(config), config.data
    train = _generated(config, "train", data.il_tasks + data.rl_tasks, config.seed)
    sets = {
        "il": train[: data.il_tasks],
        "rl": train[data.il_tasks :],
        "validation": _generated(config, "validation", data.validation_tasks),
        "test": _generated(config, "test", data.test_tasks),
    }
    for split in env.splits:
        if split not in ("train", *sets) and (split != "official" or data.official_data):
            sets[split] = env.tasks(split)
    return sets


def _generated(config: StudyConfig, split: str, count: int, seed: int = 0) -> list[Task]:
    """The first `count` tasks of a split that belong to the chosen families."""
    tasks = environment(config).tasks(split, seed=seed)
    if config.data.families != "all":
        wanted = {name.strip() for name in config.data.families.split(",")}
        unknown = wanted - {task.family for task in tasks}
        if unknown:
            raise ValueError(f"Unknown family {min(unknown)!r} in families; {split} has {_families(tasks)}.")
        tasks = [task for task in tasks if task.family in wanted]
    if len(tasks) < count:
        raise ValueError(f"{count} {split} tasks were asked for; the chosen families have {len(tasks)}.")
    return tasks[:count]


def _families(tasks: Sequence[Task]) -> str:
    return ", ".join(sorted({task.family for task in tasks}))


def demonstrate(config: StudyConfig) -> Run:
    """Expert trajectories on the `il` tasks (notebook 01)."""
    tasks = task_sets(config)["il"]
    parameters = {
        "expert_trials": config.data.expert_trials,
        "mistake_rate": config.data.mistake_rate,
        "max_steps": config.rollout.max_steps,
        **_shared(config),
    }
    run = _open(config, "expert", parameters, {"tasks": tasks_digest(tasks)})
    if not run.finished:
        made = expert_trajectories(
            environment(config), tasks, config.data.expert_trials, config.seed, config.data.mistake_rate,
            max_steps=config.rollout.max_steps,
        )  # fmt: skip
        write_trajectories(run.path / TRAJECTORIES, made)
        run.finish(trajectories=len(made))
    return run


def train_sft(config: StudyConfig) -> Run:
    """Stage 1 (notebook 02): expert trajectories to the adapter of the imitation policy."""
    expert = demonstrate(config)
    run = _open(config, "sft", {**asdict(config.sft), **_shared(config), **_policy(config)}, {"expert": expert.key})
    if not run.finished:
        policy = Policy.load(config.policy, seed=config.seed)
        rows = imitation_rows(config, policy)
        training.sft(policy, rows, config.sft, run, config.seed)
        _finish_training(run, policy, examples=len(rows))
    return run


def imitation_rows(config: StudyConfig, policy: Policy) -> list[examples.Example]:
    """D_IL as token examples."""
    trajectories = read_trajectories(demonstrate(config).path / TRAJECTORIES)
    return examples.imitation_examples(policy, environment(config), trajectories, config.sft.mask_observations)


def roll_out(
    config: StudyConfig, start: Run | None, tasks: Sequence[Task], how: RolloutConfig, samples: int = 1, seed: int = 0
) -> Run:
    """Episodes of the policy that `start` trained (None: the base model), `samples` for each task.

    Saved chunk by chunk; a chunk is the unit of resuming, because float noise depends on who is decoded together.
    """
    parameters = {**asdict(how), "samples": samples, "draws": seed, **_shared(config), **_policy(config)}
    inputs = {"tasks": tasks_digest(tasks), "policy": start.key if start else "base"}
    run = _open(config, "rollouts", parameters, inputs)
    if run.finished:
        return run
    file = run.path / TRAJECTORIES
    done = len(read_trajectories(file, recover=True)) // how.chunk * how.chunk if file.exists() else 0
    write_trajectories(file, read_trajectories(file)[:done] if file.exists() else [])
    policy, env = load_policy(config, start), environment(config)
    episodes = [(task, draw_seed(seed, sample)) for sample in range(samples) for task in tasks]
    with bar("Rollouts", "episode", len(episodes), done) as shown:
        for begin in range(done, len(episodes), how.chunk):
            part = episodes[begin : begin + how.chunk]
            played: list[Trajectory | None] = [None] * len(part)
            for position, trajectory in rollouts(policy, env, part, how):
                played[position] = trajectory
                shown.update()
            append_trajectories(file, played)
    run.finish(episodes=len(episodes))
    return run


def train_joint_rl(config: StudyConfig) -> Run:
    """Stage 2 (notebook 03): from the imitation policy, `rounds` times roll out, score, and train."""
    start = train_sft(config)
    for number in range(config.rl.rounds):
        start = _rl_round(config, start, number)
    return start


def training_rollouts(config: StudyConfig, start: Run, number: int = 0) -> Run:
    """The off-policy batch of one round: the policy of `start` on the `rl` tasks."""
    how = replace(config.rollout, trials=config.rl.rl_trials, temperature=1.0)
    return roll_out(config, start, task_sets(config)["rl"], how, config.rl.rl_samples, config.seed + 1000 * number)


def _rl_round(config: StudyConfig, start: Run, number: int) -> Run:
    rolled = training_rollouts(config, start, number)
    parameters = {**asdict(config.rl), **asdict(config.sft), **_shared(config), **_policy(config), "round": number}
    run = _open(config, "rl", parameters, {"start": start.key, "rollouts": rolled.key})
    if not run.finished:
        policy = load_policy(config, start)
        trajectories = read_trajectories(rolled.path / TRAJECTORIES)
        rows = examples.rewarded_examples(
            policy, environment(config), trajectories, config.rl, config.sft.mask_observations
        )
        if not rows:
            raise ValueError("No rollout earned a reward: train the imitation policy longer, or roll out more tasks.")
        rows = [row for row in rows if len(row.ids) <= config.sft.max_tokens]
        rows = training.score(policy, rows, config.sft.batch_tokens)
        demonstrations = imitation_rows(config, policy)
        training.joint_rl(policy, rows, demonstrations, config.rl, config.sft, run, config.seed + number)
        _finish_training(run, policy, examples=len(rows), planner=sum(r.role == "planner" for r in rows))
    return run


def evaluate(config: StudyConfig, start: Run | None, arm: str, split: str, mode: str) -> pd.DataFrame:
    """Outcome table of an arm on a task set in one of the `evaluation_modes`."""
    trajectories = evaluation_trajectories(config, start, split, mode)
    trials = evaluation_modes(config)[mode].trials
    return outcomes(trajectories, trials, arm=arm, split=split, mode=mode, seed=config.seed)


def evaluation_modes(config: StudyConfig) -> dict[str, RolloutConfig]:
    """``greedy``: one trial. ``sampled``: K trials with reflections. ``retry``: the same without a reflector."""
    trials, temperature = config.evaluation.eval_trials, config.evaluation.eval_temperature
    return {
        "greedy": replace(config.rollout, trials=1, temperature=0.0),
        "sampled": replace(config.rollout, trials=trials, temperature=temperature),
        "retry": replace(config.rollout, trials=trials, temperature=temperature, reflect=False),
    }


def evaluation_trajectories(config: StudyConfig, start: Run | None, split: str, mode: str) -> list[Trajectory]:
    """The episodes behind `evaluate`. Raises ValueError for an unknown split or mode."""
    modes, tasks = evaluation_modes(config), task_sets(config)
    if mode not in modes:
        raise ValueError(f"Unknown evaluation mode {mode!r}; expected one of {', '.join(modes)}.")
    if split not in tasks:
        raise ValueError(f"Unknown task set {split!r}; expected one of {', '.join(tasks)}.")
    run = roll_out(config, start, tasks[split], modes[mode], seed=config.seed)
    return read_trajectories(run.path / TRAJECTORIES)


def evaluate_arm(
    config: StudyConfig, start: Run | None, arm: str, splits: Sequence[str] = ("test", "real"),
    modes: Sequence[str] = ("greedy", "sampled"),
) -> pd.DataFrame:
    """`evaluate` for every split and mode, as one table."""
    return pd.concat([evaluate(config, start, arm, s, m) for s in splits for m in modes], ignore_index=True)


def ablation_arms(config: StudyConfig) -> list[str]:
    """The arms that the settings ask for. Raises ValueError for an unknown name."""
    asked = config.evaluation.ablations
    names = list(ABLATIONS) if asked == "all" else [name.strip() for name in asked.split(",") if name.strip()]
    for name in names:
        if name not in ABLATIONS:
            raise ValueError(f"Unknown ablation {name!r}; expected all, or some of {', '.join(ABLATIONS)}.")
    return names


def run_ablation(config: StudyConfig, arm: str) -> pd.DataFrame:
    """Train an arm as the full method but for its changes, and evaluate it on the test split."""
    changed = config.change(**ABLATIONS[arm])
    modes = ("retry",) if arm == "plain_retry" else ("greedy", "sampled")
    return evaluate_arm(changed, train_joint_rl(changed), arm, splits=("test",), modes=modes)


def save_table(config: StudyConfig, table: pd.DataFrame, name: str) -> None:
    """Write a table of this seed below the results folder, as a whole or not at all."""
    folder = paths.results_dir(config.profile, config.env) / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{name}-seed{config.seed}.csv", table.to_csv(index=False))


def read_tables(config: StudyConfig, name: str) -> pd.DataFrame:
    """The tables `save_table` wrote under this name, all seeds. Raises ValueError when there is none."""
    files = sorted((paths.results_dir(config.profile, config.env) / "tables").glob(f"{name}-seed*.csv"))
    if not files:
        raise ValueError(f"No table {name} of profile {config.profile} for {config.env}: run the notebooks before first.")
    return pd.concat([pd.read_csv(file) for file in files], ignore_index=True)


def load_policy(config: StudyConfig, start: Run | None) -> Policy:
    """The policy that `start` trained; with None the base model under fresh, still idle adapters."""
    policy = Policy.load(config.policy, seed=config.seed)
    if start is not None:
        policy.load_adapters(start.path / ADAPTER)
    return policy


def tasks_digest(tasks: Sequence[Task]) -> str:
    """SHA-256 of everything that defines the tasks."""
    return digest_of([asdict(task) for task in tasks])


def _open(config: StudyConfig, stage: str, parameters: dict, inputs: dict) -> Run:
    return Run.open(paths.runs_dir(config.profile, config.env), stage, parameters, inputs)


def _shared(config: StudyConfig) -> dict:
    """What every stage's key holds."""
    data = config.data
    return {
        "env": config.env,
        "seed": config.seed,
        "describe": data.describe,
        "observation_chars": data.observation_chars,
    }


def _policy(config: StudyConfig) -> dict:
    found = checkpoints.resolve(config.policy.checkpoint)
    return {**asdict(config.policy), "checkpoint_digest": found.digest}


def _finish_training(run: Run, policy: Policy, **summary: int) -> None:
    replace_folder(run.path / ADAPTER, policy.save)
    run.finish(updates=len(run.metrics()), **summary)
