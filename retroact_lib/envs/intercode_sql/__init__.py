"""InterCode-SQL (Yang et al. 2023): what it has of its own among the settings. The environment is in `env`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """InterCode-SQL's own settings."""

    describe: str = "mysql"
    """DESC shows all six fields (``mysql``), name and type (``compact``), or names only (``names``)."""
    observation_chars: int = 400
    """An observation longer than this is cut."""
    max_columns: int = 0
    """Leave out generated questions whose gold query uses more columns than this; 0 keeps all."""
    official: str = "unseen"
    """Official questions: those whose database neither training nor validation has (``unseen``), or ``all``."""
    versions: int = 0
    """Training questions are set in so many versions of their databases, whose tables and columns have other names."""
    askings: int = 1
    """A training question is asked so many times, each time in another of these databases."""

    def __post_init__(self):
        known = ("mysql", "compact", "names")
        if self.describe not in known:
            raise ValueError(f"describe is {self.describe!r}; expected one of {known}.")
        if self.official not in ("unseen", "all"):
            raise ValueError(f"official is {self.official!r}; expected unseen or all.")
        if self.versions < 0:
            raise ValueError(f"versions is {self.versions}; expected 0 or more.")
        if not 1 <= self.askings <= self.versions + 1:
            raise ValueError(f"askings is {self.askings}; expected 1 to {self.versions + 1}, which is versions + 1.")
        if self.observation_chars < 40:
            raise ValueError(f"observation_chars is {self.observation_chars}; expected at least 40.")


PROFILES = {
    "smoke": dict(describe="names", families="count", max_steps=6),
    "laptop": dict(
        describe="names",
        families="count,count_filter,aggregate,filter,superlative,distinct",
        max_columns=2,
        max_steps=10,
        max_action_tokens=112,
    ),
}
