"""Environments by name. A new one is a module with an `Env` subclass, and a line in `ENVIRONMENTS`."""

from __future__ import annotations

from importlib import import_module

from retroact_lib.envs.base import Env

ENVIRONMENTS = {"intercode_sql": "InterCodeSQL"}


def make(name: str, **options) -> Env:
    """The environment `name`. Raises ValueError for an unknown name."""
    if name not in ENVIRONMENTS:
        raise ValueError(f"Unknown environment {name!r}; expected one of {', '.join(ENVIRONMENTS)}.")
    return getattr(import_module(f"retroact_lib.envs.{name}"), ENVIRONMENTS[name])(**options)
