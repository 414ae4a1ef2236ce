"""The files that the authors released: their rows, cut into what the agent wrote and what it was given."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroact_lib.trajectories import reflector_reward


@dataclass(frozen=True)
class AuthorsRow:
    """One row of a file that the authors released, cut into what the agent wrote and what it was given."""

    role: str
    """``planner`` or ``reflector``."""
    prompt: str
    segments: list[tuple[str, bool]]
    """(text, written by the agent), in order; joined they are the row's ``output``. No segments for an empty one."""
    reward: float | None
    """The planner's reward, or the reflector's shaped reward; None in files for imitation learning."""


def read_authors_file(path: str | Path) -> list[AuthorsRow]:
    """Read the authors' JSON: a list of ``input, output, type[, reward | last_reward, current_reward]``.

    A planner's output holds observations: numbered ``Observation i:`` spans, or, in ALFWorld, every line that does
    not start with ``>``. They are marked as not written by the agent. Raises ValueError naming the file, the
    position in the list (counted from 0) and the field for anything else than that form.
    """
    path = Path(path)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); expected a list of rows with input, output and type") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds a JSON {type(rows).__name__}; expected a list of rows with input, output, type")
    return [_authors_row(row, f"{path}, row {i}") for i, row in enumerate(rows)]


def _authors_row(row: Any, where: str) -> AuthorsRow:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object with input, output and type, got {type(row).__name__}")
    for name in ("input", "output", "type"):
        if name not in row:
            raise ValueError(f"{where}: the field {name!r} is missing")
        if not isinstance(row[name], str):
            raise ValueError(f"{where}: the field {name!r} should be text, got {type(row[name]).__name__}")
    role = row["type"]
    if role not in ("planner", "reflector"):
        raise ValueError(f"{where}: the field 'type' should be planner or reflector, got {role!r}")
    instruction = row.get("instruction") or ""
    if not isinstance(instruction, str):
        raise ValueError(f"{where}: the field 'instruction' should be text, got {type(instruction).__name__}")
    prompt = f"{instruction}\n{row['input']}" if instruction else row["input"]
    if role == "planner":
        return AuthorsRow(role, prompt, split_authors_output(row["output"], prompt), _number(row, "reward", where))
    last, current = (_number(row, name, where) for name in ("last_reward", "current_reward"))
    if (last is None) != (current is None):
        raise ValueError(
            f"{where}: the field {'last_reward' if last is None else 'current_reward'!r} is missing; "
            "a reflector's reward needs both last_reward and current_reward"
        )
    reward = None if last is None or current is None else reflector_reward(last, current)
    return AuthorsRow(role, prompt, [(row["output"], True)] if row["output"] else [], reward)


def _number(row: dict, name: str, where: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{where}: the field {name!r} should be a finite number, got {value!r}")
    return float(value)


_NUMBERED = re.compile(r"^(?:Thought|Action|Observation) \d+:", re.MULTILINE)
_COMMAND = re.compile(r"^>", re.MULTILINE)
_FIRST_CUE = re.compile(r"\s*Thought \d+:")
_OBSERVATION = re.compile(r"^Observation (\d+):", re.MULTILINE)
_TRAILER = re.compile(r"\s*^(?:STATUS|REWARD):[^\n]*\s*(?:^(?:STATUS|REWARD):[^\n]*\s*)*\Z", re.MULTILINE)


def split_authors_output(output: str, prompt: str = "") -> list[tuple[str, bool]]:
    """Cut a planner's output into (text, written by the agent); the texts joined are `output`."""
    if _NUMBERED.search(output) or not _COMMAND.search(output):
        spans = _numbered_spans(output)
    else:
        spans = _command_spans(output, agent_first=prompt.rstrip().endswith(">"))
    merged: list[tuple[str, bool]] = []
    for text, agent in spans:
        if text and merged and merged[-1][1] == agent:
            merged[-1] = (merged[-1][0] + text, agent)
        elif text:
            merged.append((text, agent))
    return merged


def _numbered_spans(output: str) -> Iterator[tuple[str, bool]]:
    """``Observation i:`` up to and with ``Thought i+1:`` is the environment's, and so are first cue and trailer."""
    trailer = _TRAILER.search(output)
    end = trailer.start() if trailer else len(output)
    first = _FIRST_CUE.match(output)
    at = first.end() if first else 0
    yield output[:at], False
    while found := _OBSERVATION.search(output, at, end):
        yield output[at : found.start()], True
        following = re.compile(rf"^Thought {int(found[1]) + 1}:", re.MULTILINE).search(output, found.end(), end)
        at = following.end() if following else end
        yield output[found.start() : at], False
    yield output[at:end], True
    yield output[end:], False


def _command_spans(output: str, agent_first: bool) -> Iterator[tuple[str, bool]]:
    """ALFWorld: lines that start with ``>`` are the agent's, and the first line if the prompt ended in ``>``."""
    for i, line in enumerate(re.findall(r"[^\n]*\n|[^\n]+", output)):
        yield line, line.startswith(">") or (agent_first and i == 0)
