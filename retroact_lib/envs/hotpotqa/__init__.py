"""HotpotQA (Yang et al. 2018): what it has of its own among the settings. The environment is in `env`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """HotpotQA's own settings."""

    retrieval: str = "distractor"
    """A search sees the question's own ten paragraphs (``distractor``), or those of all questions (``open``)."""
    observation_chars: int = 400
    """An observation longer than this is cut."""
    versions: int = 0
    """Training questions are asked of so many versions of their articles too, in which names have changed hands."""

    def __post_init__(self):
        known = ("distractor", "open")
        if self.retrieval not in known:
            raise ValueError(f"retrieval is {self.retrieval!r}; expected one of {known}.")
        if self.observation_chars < 40:
            raise ValueError(f"observation_chars is {self.observation_chars}; expected at least 40.")
        if self.versions < 0:
            raise ValueError(f"versions is {self.versions}; expected 0 or more.")
        if self.versions and self.retrieval == "open":
            raise ValueError(f"versions is {self.versions} with retrieval 'open'; expected 0, or 'distractor'.")


PROFILES = {
    "smoke": dict(families="bridge_capital", max_steps=4),
    "laptop": dict(
        max_steps=7,
        max_action_tokens=128,
        observation_chars=280,
        il_tasks=320,
        rl_tasks=192,
        rl_lr=1e-4,
        test_tasks=100,
        ablations="no_il,continued_sft,plain_retry",
    ),
    "paper": dict(max_steps=5, max_action_tokens=500, max_reflection_tokens=250),  # their calls have 250 tokens here
}
