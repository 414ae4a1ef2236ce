"""How time and memory grow, and where the time of an update goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from retroact_lib import training
from retroact_lib.bench.hardware import PeakMemory, seconds
from retroact_lib.bench.updates import WHOLE
from retroact_lib.config import SFTConfig
from retroact_lib.examples import Example
from retroact_lib.policy import Policy
from retroact_lib.runs import Run

PARTS = {
    "attention": ("scaled_dot_product",),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear"),
    "4-bit to dense": ("bitsandbytes",),
    "softmax of the vocabulary": ("log_softmax", "nll_loss", "cross_entropy"),
    "optimizer": ("optimizer", "foreach", "lerp"),
}
"""Part of an update -> words in the names of its operations. The rest is element-wise work and Python."""


def random_examples(length: int, count: int, vocabulary: int, seed: int = 0) -> list[Example]:
    """Rows of random tokens that share nothing; the agent wrote the last three of every ten tokens."""
    draws = torch.Generator().manual_seed(seed)
    mask = [int(t % 10 >= 7) for t in range(length)]
    return [
        Example("planner", torch.randint(vocabulary, (length,), generator=draws).tolist(), mask) for _ in range(count)
    ]


def of_updates(policy: Policy, lengths: Sequence[int], batches: Sequence[int], folder: Path) -> pd.DataFrame:
    """Seconds and peak GiB of one update: rows of several lengths (one a batch), and batches of several sizes.

    From small to large, so that on a CPU each peak is above those before it.
    """
    trainer = _trainer(policy, folder)
    size = policy.head.weight.shape[0]
    sizes = [("tokens of a row", n, n, 1) for n in lengths] + [("rows of a batch", n, lengths[0], n) for n in batches]
    rows = []
    trainer.update([training.imitation_term(random_examples(lengths[0], 1, size))])
    for grows, value, length, count in sizes:
        term = training.imitation_term(random_examples(length, count, size))
        with PeakMemory(policy.device) as peak:
            taken = seconds(lambda term=term: trainer.update([term]), policy.device)
        rows.append({"grows": grows, "value": value, "seconds": taken, "peak_gib": peak.gib})
    return pd.DataFrame(rows)


def of_rollouts(play: Callable[[int], object], counts: Iterable[int], device: torch.device) -> pd.DataFrame:
    """Seconds and peak GiB of `play(n)` for each number n of tasks, the policy's dense weights made before."""
    counts, rows = list(counts), []
    play(counts[0])
    for count in counts:
        with PeakMemory(device) as peak:
            taken = seconds(lambda count=count: play(count), device)
        rows.append({"grows": "tasks", "value": count, "seconds": taken, "peak_gib": peak.gib})
    return pd.DataFrame(rows)


def time_by_part(policy: Policy, examples: Sequence[Example], folder: Path) -> pd.Series:
    """Share of an update's time by part, in %, from torch's profiler (its own cost spread over all)."""
    trainer = _trainer(policy, folder)
    term = training.imitation_term(examples)
    trainer.update([term])
    on_cuda = policy.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]) as seen:
        trainer.update([term])
    spent = dict.fromkeys([*PARTS, "element-wise and the rest"], 0.0)
    for event in seen.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # a kernel of the card counts for the operation that started it
        words = (part for part, names in PARTS.items() if any(name in event.key.lower() for name in names))
        part = next(words, "element-wise and the rest")
        spent[part] += event.self_device_time_total if on_cuda else event.self_cpu_time_total
    found = pd.Series(spent, name="share of the time, %")
    return 100 * found / found.sum()


def _trainer(policy: Policy, folder: Path) -> training.Trainer:
    run = Run.open(folder, "sft", {}, {})
    return training.Trainer(policy, run, SFTConfig(batch_tokens=WHOLE), 1e-6, 1, 1_000_000, 0)
