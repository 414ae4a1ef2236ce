"""The text format: what planner and reflector read, what they write, how an action is parsed.

The format is the authors': numbered Thought / Action / Observation lines in one running text. The agent writes
``" <thought>\\nAction i: <action>\\n"``; the environment writes ``"Observation i: <text>\\nThought i+1:"``. The cue
``Thought i+1:`` belongs to the environment, so an agent segment always starts right after it, in expert data and
in rollouts alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_REFLECTIONS = 3
"""At most this many reflections, the latest, stay in the planner's prompt."""

REFLECTOR_INSTRUCTION = (
    "You are given the history of a failed attempt at a task. Name the mistake and write a short plan that avoids it, "
    "with the specific actions to take. Answer with the reflection only, in one line."
)

REFLECTION_CUE = "Reflection:"
"""What stands right before the reflector's segment."""

_ACTION_LINE = re.compile(r"Action(?: \d+)?:[ \t]*")


def planner_prompt(question: str, reflections: Sequence[str] = ()) -> str:
    """The user's message to the planner: the latest reflections, then the task."""
    kept = list(reflections)[-MAX_REFLECTIONS:]
    memory = "".join(f"Reflection {i}: {text}\n" for i, text in enumerate(kept, 1))
    return f"{memory}Question: {question}"


def reflector_prompt(question: str, transcript: str, reward: float) -> str:
    """The user's message to the reflector: the failed trial and what the evaluator gave it."""
    return f"Question: {question}\n{transcript.rstrip()}\nStatus: failed, reward {reward:.2f}"


def cue(step: int) -> str:
    """What stands right before the agent's segment of step `step` (counted from 1)."""
    return f"Thought {step}:"


def agent_text(step: int, thought: str, action: str) -> str:
    """The agent's segment of a step, as an expert would write it."""
    return f" {thought}\nAction {step}: {action}\n"


def environment_text(step: int, observation: str) -> str:
    """The environment's segment after a step, up to the cue for the next one."""
    return f"Observation {step}: {observation}\n{cue(step + 1)}"


def reflection_text(text: str) -> str:
    """The reflector's segment, as an expert would write it."""
    return f" {text}\n"


def action_complete(text: str) -> bool:
    """Whether an agent segment has reached the end of its action line: generation stops here.

    An action whose bracket is still open goes on over line ends, so that SQL may take several lines.
    """
    found = _ACTION_LINE.search(text)
    if not found:
        return False
    body = text[found.end() :]
    if "\n" not in body:
        return False
    line, _, _ = body.partition("\n")
    return "[" not in line or body.rstrip(" ").endswith("]\n") or "]\n" in body


def parse_agent_text(text: str) -> tuple[str, str]:
    """Split an agent segment into (thought, action); anything after the first action is cut.

    The action is ``""`` when the segment holds none.
    """
    found = _ACTION_LINE.search(text)
    if not found:
        return text.strip(), ""
    thought, body = text[: found.start()].strip(), text[found.end() :]
    first_line = body.partition("\n")[0]
    if "[" in first_line and "]\n" in body:
        return thought, body[: body.index("]\n") + 1].strip()
    return thought, first_line.strip()
