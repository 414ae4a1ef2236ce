"""What the machine can do at most, and how contenders are timed against each other."""

from __future__ import annotations

import platform
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import psutil
import torch

from retroact_lib import paths
from retroact_lib.config import StudyConfig
from retroact_lib.files import write_text
from retroact_lib.runs import give_back_memory

OURS = "RetroAct"
"""Our own name among the contenders."""


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int = 2048, repetitions: int = 9) -> float:
    """Best rate of a square matrix product, in GFLOP/s."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = min(seconds(lambda: a @ b, device) for _ in range(repetitions + 1))
    return 2 * size**3 / best / 1e9


def copy_bandwidth(device: torch.device, mib: int = 256, repetitions: int = 9) -> float:
    """Best rate of a copy between two large blocks of memory, bytes read and written, in GB/s."""
    source = torch.ones(mib * 2**18, device=device)
    target = torch.empty_like(source)
    best = min(seconds(lambda: target.copy_(source), device) for _ in range(repetitions + 1))
    return 2 * source.nbytes / best / 1e9


def machine(device: torch.device, dtype: torch.dtype) -> pd.Series:
    """The machine in words, and its two limits in the data type of the study's products."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.processor()
        name = f"{cpu}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return pd.Series(
        {
            "device": name,
            "data type": str(dtype).removeprefix("torch."),
            "matrix product, GFLOP/s": round(matmul_peak(device, dtype)),
            "copy, GB/s": round(copy_bandwidth(device), 1),
            "torch": torch.__version__,
        },
        name="machine",
    )


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's queue included."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def alternate(
    contenders: Mapping[str, Callable[[int], dict]], rounds: int, device: torch.device, warm_up: bool = True
) -> pd.DataFrame:
    """Time the contenders in turns: one row for each (round, contender), with what the call returned.

    Round by round, so that a slow minute of the machine meets all of them. A contender gets the round's number; round
    -1 warms it up and is not kept. Each row has `seconds`, and `peak_gib` beside what was held before.
    """
    rows = []
    for number in range(-1 if warm_up else 0, rounds):
        for name, work in contenders.items():
            found: dict = {}
            with PeakMemory(device) as peak:
                taken = seconds(lambda work=work, number=number, found=found: found.update(work(number)), device)
            if number >= 0:
                rows.append({"contender": name, "round": number, "seconds": taken, "peak_gib": peak.gib, **found})
    return pd.DataFrame(rows)


def medians(table: pd.DataFrame, rate: str, first: str) -> pd.DataFrame:
    """Median, lowest and highest of `rate` (a column) by contender, and how many times as fast `first` is.

    The ratio is the median over the rounds of the two rates side by side.
    """
    rates = table.pivot(index="round", columns="contender", values=rate)
    rows = []
    for name in table["contender"].unique():
        own = rates[name].dropna()
        both = (rates[first] / rates[name]).dropna()
        rows.append(
            {
                "contender": name,
                rate: statistics.median(own),
                "lowest": own.min(),
                "highest": own.max(),
                "rounds": len(own),
                f"{first} is faster": statistics.median(both),
            }
        )
    return pd.DataFrame(rows)


def folder_of(config: StudyConfig) -> Path:
    """Where tables and figures of speed go."""
    return paths.results_dir(config.profile, "speed")


def save(config: StudyConfig, table: pd.DataFrame, name: str) -> None:
    """Write a table of speed of this environment."""
    folder_of(config).mkdir(parents=True, exist_ok=True)
    write_text(folder_of(config) / f"{name}-{config.env}.csv", table.to_csv(index=False))


def read(config: StudyConfig, name: str) -> pd.DataFrame:
    """Read what `save` wrote. Raises ValueError when it is not there."""
    file = folder_of(config) / f"{name}-{config.env}.csv"
    if not file.exists():
        raise ValueError(f"{file} is not there; run notebook 07 with this profile and environment first.")
    return pd.read_csv(file)


class PeakMemory:
    """Inside, the most memory beside what was held before, in GiB: on a card by torch, on a CPU by looking often."""

    def __init__(self, device: torch.device):
        self.device, self.gib = device, 0.0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            give_back_memory()  # what is freed and kept would be used again unseen
            self._before = self._most = _resident()
            self._over = threading.Event()
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self._most = torch.cuda.max_memory_allocated(self.device)
        else:
            self._over.set()
            self._thread.join()
        self.gib = (self._most - self._before) / 2**30

    def _look(self) -> None:
        over = False
        while not over:
            over = self._over.wait(0.005)
            self._most = max(self._most, _resident())


def _resident() -> int:
    """Resident memory of this process, in bytes."""
    return psutil.Process().memory_info().rss


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
