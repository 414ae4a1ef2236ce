"""Progress with rate and time left: a bar in a terminal, a line now and then in a log or a notebook."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
LOG_SECONDS = 30.0
"""Seconds between two lines where there is no terminal."""


class _Lines:
    """A stream on which every redrawn bar is a line of its own."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def bar(name: str, unit: str, total: int, done: int = 0) -> tqdm:
    """A tqdm bar that never floods: redrawn in a terminal, one line every `LOG_SECONDS` elsewhere."""
    terminal = sys.stderr.isatty()
    return tqdm(
        desc=name,
        unit=unit,
        total=total,
        initial=done,
        mininterval=0.5 if terminal else LOG_SECONDS,
        delay=0 if terminal else LOG_SECONDS,
        maxinterval=0.5 if terminal else LOG_SECONDS,
        dynamic_ncols=terminal,
        file=sys.stderr if terminal else _Lines(),
    )


def progress(items: Iterable[Item], name: str, unit: str, done: int = 0, total: int | None = None) -> Iterator[Item]:
    """Iterate with a bar; `done` of `total` items were finished before."""
    total = total if total is not None else len(items)  # type: ignore[arg-type]
    with bar(name, unit, total, done) as shown:
        for item in items:
            yield item
            shown.update()
