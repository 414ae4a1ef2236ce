"""Rollouts: ours beside the ways in which `generate` can play the same greedy trials with the same policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from retroact_lib import prompts
from retroact_lib.bench.hardware import OURS
from retroact_lib.config import RolloutConfig
from retroact_lib.decoding import Request, decode
from retroact_lib.envs.base import Env, Task
from retroact_lib.policy import SHARED_ADAPTER, Policy
from retroact_lib.rollout import rollouts
from retroact_lib.trajectories import Trial
from retroact_lib.trials import Attempt


def contenders(
    policy: Policy, env: Env, tasks: Sequence[Task], how: RolloutConfig, few: int
) -> dict[str, Callable[[int], dict]]:
    """By name, what plays one greedy trial at each task: `tasks`, or the first `few` where prompts go one by one.

    The peers read the whole history at every step. They are lent our merged dense weights, or use the 4-bit layers as
    they come ("stock"). "Continuous batching" is transformers' own, our other engine. "One at a time" is the authors'
    loop: one prompt, and two calls a step (a thought, an action). Each returns `episodes_per_minute`, the number
    `solved`, and the `actions` of each trial.
    """
    together, alone = (lambda texts: _generate(policy, texts, how)), (lambda texts: _two_calls(policy, texts, how))
    made = {
        OURS: lambda: play(policy, env, tasks, how),
        "continuous batching": lambda: play(policy, env, tasks, replace(how, engine="transformers")),
        "generate, batched": lambda: _play(policy, env, tasks, how, together, dense=True),
        "generate, batched, stock": lambda: _play(policy, env, tasks, how, together, dense=False),
        "one at a time": lambda: _play(policy, env, tasks[:few], how, alone, dense=True),
        "one at a time, stock": lambda: _play(policy, env, tasks[:few], how, alone, dense=False),
    }

    def timed(play: Callable[[], list[Trial]]) -> Callable[[int], dict]:
        def work(number: int) -> dict:
            start = time.perf_counter()
            trials = play()
            minutes = (time.perf_counter() - start) / 60
            actions = [[turn.action for turn in trial.turns] for trial in trials]
            solved = sum(trial.success for trial in trials)
            return {"episodes_per_minute": len(trials) / minutes, "solved": solved, "actions": actions}

        return work

    return {name: timed(play) for name, play in made.items()}


def same_actions(found: Sequence[Sequence[str]], ours: Sequence[Sequence[str]]) -> float:
    """Share of the actions in `found` that ours took at the same step of the same trial."""
    pairs = [
        step < len(mine) and mine[step] == action
        for theirs, mine in zip(found, ours, strict=False)
        for step, action in enumerate(theirs)
    ]
    return sum(pairs) / max(len(pairs), 1)


def step_seconds(policy: Policy, parallel: int, context: int, steps: int = 16) -> float:
    """Seconds in which `parallel` conversations of `context` tokens are written on by one token each."""
    words = policy.encode(" word" * context)[:context]

    def talk(number: int, count: int):
        ids = [policy.encode(" one two three four five six seven eight nine ten")[number % 10], *words[1:]]
        yield Request(ids, "planner", lambda text: False, count, 0.0, 0, fresh=True)

    def taken(count: int) -> float:
        start = time.perf_counter()
        list(decode(policy, [talk(i, count) for i in range(parallel)], parallel))
        return time.perf_counter() - start

    taken(1)
    return max(taken(1 + steps) - taken(1), 1e-9) / steps


def step_bytes(policy: Policy, parallel: int, context: int) -> int:
    """Bytes that such a step must read: every dense weight once, and the keys and values of every conversation."""
    size = policy.compute_dtype.itemsize
    weights = sum(m.in_features * m.out_features for m in policy.linear_layers()) * size
    weights += policy.head.weight.numel() * policy.head.weight.element_size()
    shape = policy.causal_lm.config.get_text_config()
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    head_size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return weights + 2 * parallel * context * shape.num_hidden_layers * heads * head_size * size


def play(policy: Policy, env: Env, tasks: Sequence[Task], how: RolloutConfig) -> list[Trial]:
    """Our greedy trials at the tasks."""
    ended = dict(rollouts(policy, env, [(task, 0) for task in tasks], how))
    return [ended[i].trials[0] for i in range(len(tasks))]


Answer = Callable[[list[list[int]]], list[list[int]]]
"""Continues each text to the end of an action."""


def _play(
    policy: Policy, env: Env, tasks: Sequence[Task], how: RolloutConfig, answer: Answer, dense: bool
) -> list[Trial]:
    """One trial at each task, all of them step by step; `answer` reads each history from its beginning."""
    texts = [policy.planner_prompt_ids(env.instruction, task.question) for task in tasks]
    weights = policy.decoding(SHARED_ADAPTER) if dense else nullcontext()
    with ExitStack() as open_attempts, policy.plain_layers(), weights, policy.plain_attention():
        played = (Attempt(env, task, [], how.max_steps, how.max_repeats) for task in tasks)
        attempts = [open_attempts.enter_context(attempt) for attempt in played]
        while live := [i for i, attempt in enumerate(attempts) if not attempt.over][: how.num_parallel]:
            for i, written in zip(live, answer([texts[i] for i in live]), strict=True):
                text, step = policy.decode(written), attempts[i].step
                observation = attempts[i].act(text, prompts.parse_agent_text(text)[1], written)
                texts[i] += written + policy.encode(prompts.environment_text(step, observation))
        return [attempt.record() for attempt in attempts]


class _Stops(StoppingCriteria):
    """A row ends where `complete` holds of what it has written."""

    def __init__(self, policy: Policy, begin: int, complete: Callable[[str], bool]):
        self.policy, self.begin, self.complete = policy, begin, complete

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        written = [self.policy.decode(ids) for ids in input_ids[:, self.begin :].tolist()]
        return torch.tensor([self.complete(text) for text in written], device=input_ids.device)


def _generate(
    policy: Policy,
    texts: list[list[int]],
    how: RolloutConfig,
    complete: Callable[[str], bool] = prompts.action_complete,
) -> list[list[int]]:
    """Greedy continuations of a batch padded on the left, by transformers' `generate`."""
    width = max(map(len, texts))
    pad = policy.tokenizer.pad_token_id
    ids_BT = torch.tensor([[pad] * (width - len(text)) + text for text in texts], device=policy.device)
    seen_BT = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts], device=policy.device)
    with torch.inference_mode():
        out_BT = policy.model.generate(
            input_ids=ids_BT,
            attention_mask=seen_BT,
            max_new_tokens=how.max_action_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=pad,
            stopping_criteria=StoppingCriteriaList([_Stops(policy, width, complete)]),
        )
    return [_cut(policy, written, complete) for written in out_BT[:, width:].tolist()]


def _cut(policy: Policy, written: list[int], complete: Callable[[str], bool]) -> list[int]:
    """What a row wrote before its end, which others of the batch outlived."""
    for count, token in enumerate(written, 1):
        if token in policy.stop_ids or complete(policy.decode(written[:count])):
            return written[:count]
    return written


def _two_calls(policy: Policy, texts: list[list[int]], how: RolloutConfig) -> list[list[int]]:
    """Each text by itself: one call for the thought, and one that reads everything again for the action."""
    answers = []
    for text in texts:
        (thought,) = _generate(policy, [text], how, lambda written: written.endswith("\n"))
        (action,) = _generate(policy, [text + thought], how)
        answers.append(thought + action)
    return answers
