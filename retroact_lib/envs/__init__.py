"""Environments by name. A new one is a package of this folder and its line in `ENVIRONMENTS`.

The package holds ``env.py`` with a subclass of `base.Env`, ``expert.py`` with a subclass of `experts.base.Expert`, and
beside them whatever the environment is made of. Its ``__init__.py`` imports nothing heavy. It may hold `Options`, the
settings that this environment alone has (a frozen dataclass, whose fields the constructor takes beside `data`), and
`PROFILES`, what differs here from each profile.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from retroact_lib.envs.base import Env

ENVIRONMENTS = {"intercode_sql": "InterCodeSQL", "hotpotqa": "HotpotQA", "alfworld": "ALFWorld"}
"""Name, which is the package's, -> class."""


@dataclass(frozen=True)
class NoOptions:
    """An environment without settings of its own."""


def env_class(name: str) -> type[Env]:
    """The class of the environment `name`. Raises ValueError for an unknown name."""
    return getattr(import_module(f"{_package(name).__name__}.env"), ENVIRONMENTS[name])


def options_class(name: str) -> type:
    """The dataclass of the settings that the environment `name` alone has. Raises ValueError for an unknown name."""
    return getattr(_package(name), "Options", NoOptions)


def profile_overrides(name: str, profile: str) -> dict[str, Any]:
    """What differs from a profile in the environment `name`. Raises ValueError for an unknown name."""
    return dict(getattr(_package(name), "PROFILES", {}).get(profile, {}))


def _package(name: str):
    if name not in ENVIRONMENTS:
        raise ValueError(f"Unknown environment {name!r}; expected one of {', '.join(ENVIRONMENTS)}.")
    return import_module(f"{__name__}.{name}")
