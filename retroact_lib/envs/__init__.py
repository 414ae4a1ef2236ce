"""Environments by name. A new one is a module with an `Env` subclass, and a line in `ENVIRONMENTS` and `PARTS`."""

from __future__ import annotations

from importlib import import_module

from retroact_lib.envs.base import Env

ENVIRONMENTS = {"intercode_sql": "InterCodeSQL", "hotpotqa": "HotpotQA", "alfworld": "ALFWorld"}
"""Name, which is the module's, -> class."""
PARTS = {
    "intercode_sql": ("spider", "sql_engine", "sql_words", "sql_tasks"),
    "hotpotqa": ("hotpot_articles", "hotpot_questions"),
    "alfworld": ("alfworld_games", "alfworld_engine", "alfworld_worker"),
}
"""Name -> the other modules that it is made of: a change of their code makes finished runs stale."""


def kind(name: str) -> type[Env]:
    """The class of the environment `name`. Raises ValueError for an unknown name."""
    if name not in ENVIRONMENTS:
        raise ValueError(f"Unknown environment {name!r}; expected one of {', '.join(ENVIRONMENTS)}.")
    return getattr(import_module(f"retroact_lib.envs.{name}"), ENVIRONMENTS[name])


def modules(name: str) -> tuple[str, ...]:
    """The modules of the library whose code an environment's tasks and answers depend on."""
    return tuple(f"envs/{module}" for module in ("base", name, *PARTS[name]))
