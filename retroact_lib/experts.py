"""Experts that show how a task is done: scripted ones, and one behind any OpenAI-compatible endpoint.

Every expert plays the same loop as the policy later: up to K trials, each judged by the environment, with a verbal
reflection after a failed one. Nothing is labelled good here. A scripted slip that the evaluator accepts is a success,
and a careful trial that it rejects is a failure; which rows train what is decided later from the rewards.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import re
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping
from typing import Any

from retroact_lib import prompts
from retroact_lib.envs.base import Env, Task
from retroact_lib.sql_mistakes import EARLY, GUESS, REPEAT, Mistake, Query, describe, draw_mistake, wanted
from retroact_lib.trajectories import Reflection, Trajectory, Trial, Turn

Steps = Generator[tuple[str, str], str, None]
"""Yields (thought, action), is sent the observation."""


class Session(ABC):
    """An expert's work on one task: attempts, and reflections between them."""

    @abstractmethod
    def attempt(self, reflections: list[str]) -> Steps:
        """Start a trial whose prompt holds `reflections`."""

    @abstractmethod
    def reflect(self, trial: Trial) -> str:
        """One line on the failed `trial`: the mistake and the plan."""


class Expert(ABC):
    """Plays the trial-reflect-retry loop."""

    @abstractmethod
    def session(
        self, env: Env, task: Task, rng: random.Random, mistake_rate: float, max_trials: int, max_steps: int
    ) -> Session:
        """Begin work on `task`."""

    def demonstrate(
        self,
        env: Env,
        task: Task,
        max_trials: int = 3,
        seed: int = 0,
        mistake_rate: float = 0.5,
        max_steps: int | None = None,
        max_repeats: int | None = None,
    ) -> Trajectory:
        """Attempt `task` until a trial succeeds or `max_trials` are over.

        The result depends on the arguments alone. `mistake_rate` is the chance that a scripted expert slips in its
        first trial; other experts make their own mistakes. A trial has at most `max_steps` actions (default: the
        environment's own), or ends when an action comes `max_repeats` times in a row (default: it goes on); cut off
        there, it earns what the evaluator gives its present state.
        Raises ValueError if `max_trials` or `max_steps` is below 1, or `mistake_rate` is not in [0, 1].
        """
        max_steps = env.max_steps if max_steps is None else max_steps
        for name, value in (("max_trials", max_trials), ("max_steps", max_steps)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= mistake_rate <= 1:
            raise ValueError(f"mistake_rate must lie between 0 and 1, got {mistake_rate}")
        session = self.session(env, task, random.Random(seed), mistake_rate, max_trials, max_steps)
        trajectory = Trajectory(task.id, task.question, task.family)
        for k in range(max_trials):
            memory = [r.text for r in trajectory.reflections][-prompts.MAX_REFLECTIONS :]
            trial = _play(env, task, session.attempt(memory), memory, max_steps, max_repeats)
            trajectory.trials.append(trial)
            if trial.success:
                break
            if k + 1 < max_trials:
                trajectory.reflections.append(Reflection(session.reflect(trial)))
        return trajectory


def _play(env: Env, task: Task, steps: Steps, reflections: list[str], max_steps: int, max_repeats: int | None) -> Trial:
    """Carry out an attempt in the environment, which alone decides what it earns."""
    episode = env.start(task)
    turns: list[Turn] = []
    reward = None
    try:
        observation: str | None = None
        while len(turns) < max_steps:
            try:
                thought, action = next(steps) if observation is None else steps.send(observation)
            except StopIteration:
                break
            result = episode.step(action)
            observation = result.observation
            turns.append(Turn(prompts.agent_text(len(turns) + 1, thought, action), action, observation))
            if result.done:
                reward = result.reward
                break
            if max_repeats and [turn.action for turn in turns[-max_repeats:]] == [action] * max_repeats:
                break
        reward = episode.reward() if reward is None else reward
    finally:
        steps.close()
        episode.close()
    return Trial(list(reflections), turns, float(reward), reward >= env.success_reward)


def stable_seed(seed: int, *parts: str) -> int:
    """A 63-bit seed from `seed` and text, the same in every process and on every machine."""
    digest = hashlib.sha256("\x1f".join([str(seed), *parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def expert_for(env: Env) -> Expert:
    """The scripted expert of an environment; ValueError if it has none."""
    if env.name not in EXPERTS:
        raise ValueError(f"no scripted expert for the environment {env.name!r}; there is one for {', '.join(EXPERTS)}")
    return EXPERTS[env.name]()


def expert_trajectories(
    env: Env,
    tasks: Iterable[Task],
    max_trials: int = 3,
    seed: int = 0,
    mistake_rate: float = 0.5,
    expert: Expert | None = None,
    max_steps: int | None = None,
    max_repeats: int | None = None,
) -> list[Trajectory]:
    """One trajectory per task, in order, by `expert` (default: the environment's scripted one).

    Each task has its own seed from (seed, task.id), so a trajectory does not depend on the other tasks.
    """
    expert = expert or expert_for(env)
    return [
        expert.demonstrate(env, task, max_trials, stable_seed(seed, task.id), mistake_rate, max_steps, max_repeats)
        for task in tasks
    ]


# --------------------------------------------------------------------------------------------------- scripted: SQL

RECOVERY_RATE = 0.1
"""Chance that a slip which causes an error is mended within its trial. Such a trial succeeds, and the planner then
imitates the slip as well as the mending, so it should be rare."""

_LOOK = ("I start with the names of the tables.", "First I list the tables.")
_RECALL = ("The reflection tells me to {plan}. I start with the tables.", "Now I will {plan}. First I list the tables.")
_SKIP = ("From the reflection I know that I need {tables}. I check the columns of {table}.",)
_FIRST = ("I need {tables}. I check the columns of {table}.",)
_NEXT = ("I also need {table}. I check its columns.",)
_PLAN = ("I need {d}.", "Now I can write the query: {d}.")
_REPLAN = ("As the reflection says, I need {d}.",)
_CHECK = ("The result shows {w}, as the question asks, so I submit.", "The query ran and gives {w}, so I submit.")
_EMPTY = ("No rows match, so the answer is empty and I submit it.",)
_GIVE_UP = ("The query failed, but I submit what I have.",)
_GUESS = ("There should be a table {table}, so I query it directly.", "I think the table is {table}. I query it.")
_AGAIN = ("That failed, but the query looks right to me. I try again.", "Maybe it works if I run it once more.")
_EARLY = ("This description of the table should be enough, so I submit.", "I have seen the columns. I submit this.")
_NO_TABLE = ("That table does not exist. I list the tables.",)
_NO_COLUMN = ("The query failed on a column. I check the columns of {table}.",)
_REFLECTIONS = (
    "I {did}. Next time I will {plan}.",
    "My mistake: I {did}. Plan: {plan}.",
    "The answer was wrong because I {did}. I should {plan} before I submit.",
    "I {did}. In the next attempt I will {plan}, check the rows and then submit.",
    "I should not have submitted yet: I {did}. The fix is to {plan}.",
)
_UNEXPLAINED = (
    "run a query for {w}, compare columns and conditions with the question, and check the rows",
    "read the question again and make sure that the query returns {w}",
)


class ScriptedSQLExpert(Expert):
    """Knows the gold SQL and still explores as a careful person would, or slips as a hasty one does.

    A careful trial lists the tables, looks at the columns of those that matter, runs the gold query and submits.
    What it says comes from the question, what it has seen, and the query it is about to run.
    """

    def session(
        self, env: Env, task: Task, rng: random.Random, mistake_rate: float, max_trials: int, max_steps: int
    ) -> Session:
        for name in ("db", "gold"):
            if not isinstance(task.meta.get(name), str):
                raise ValueError(f"task {task.id} has no text {name!r} in its meta, which the SQL expert needs")
        query = Query(task.meta["gold"], env.schema(task.meta["db"]))  # type: ignore[attr-defined]
        return _SQLSession(query, rng, mistake_rate, max_trials, max_steps)


class _SQLSession(Session):
    def __init__(self, query: Query, rng: random.Random, mistake_rate: float, max_trials: int, max_steps: int) -> None:
        self.query, self.rng, self.max_steps = query, rng, max_steps
        self.tables = query.tables[:3]
        self.slips: list[Mistake] = []
        """The slips of the first trials; after them every trial is careful."""
        if rng.random() < mistake_rate and (first := draw_mistake(query, rng)):
            self.slips.append(first)
            if max_trials >= 3 and rng.random() < 0.2 and (second := draw_mistake(query, rng, avoid=[first.kind])):
                self.slips.append(second)
        self.trial = 0

    def attempt(self, reflections: list[str]) -> Steps:
        slip = self.slips[self.trial] if self.trial < len(self.slips) else None
        before = self.slips[self.trial - 1] if 0 < self.trial <= len(self.slips) else None
        self.trial += 1
        return self._careful(reflections, before) if slip is None else self._slip(slip, reflections, before)

    def reflect(self, trial: Trial) -> str:
        slip = self.slips[self.trial - 1] if self.trial <= len(self.slips) else None
        submitted = bool(trial.turns) and trial.turns[-1].action == "submit"
        did = slip.did if slip else "gave an answer that the evaluator did not accept"
        if slip and submitted and len(trial.turns) > 1 and _is_error(trial.turns[-2].observation):
            did = f"{did}, and submitted the error"
        plan = slip.plan if slip else self._say(_UNEXPLAINED, w=wanted(self.query.select))
        templates = _REFLECTIONS if submitted else _REFLECTIONS[:2]  # the others speak of submitting
        return self._say(templates, did=_short(did, 19), plan=_short(plan, 15))

    def _say(self, templates: tuple[str, ...], **words: str) -> str:
        return self.rng.choice(templates).format(**words)

    # ---- the parts of a trial

    def _careful(self, reflections: list[str], before: Mistake | None) -> Steps:
        yield from self._explore(reflections, before, self.tables, used=0)
        yield from self._answer(_REPLAN if reflections else _PLAN)

    def _answer(self, templates: tuple[str, ...]) -> Steps:
        seen = yield self._say(templates, d=describe(self.query)), f"execute[{self.query.sql}]"
        yield self._check(seen, self.query), "submit"

    def _check(self, seen: str, query: Query) -> str:
        if _is_error(seen):
            return self._say(_GIVE_UP)
        if seen.strip() in ("", "[]", "()"):
            return self._say(_EMPTY)
        return self._say(_CHECK, w=wanted(query.select))

    def _explore(self, reflections: list[str], before: Mistake | None, tables: list[str], used: int) -> Steps:
        """List the tables, look at those that matter; as much as leaves two steps for query and submit."""
        skip = bool(tables) and all(_names(reflections[-1:], t) for t in tables) and self.rng.random() < 0.3
        words = {"tables": _and(tables), "plan": _short(before.plan, 12) if before else ""}
        todo: list[tuple[str, str]] = []
        if not skip:
            todo.append((self._say(_RECALL if before else _LOOK, **words), "execute[SHOW TABLES]"))
        for i, table in enumerate(tables):
            templates = _NEXT if i else _SKIP if skip else _FIRST
            thought = self._say(templates, table=table, before=tables[i - 1], **words)
            todo.append((thought, f"execute[{_desc(table)}]"))
        room = max(0, self.max_steps - used - 2)
        for step in todo[max(0, len(todo) - room) :]:  # noqa: UP028 (a list takes no observations)
            yield step

    def _slip(self, slip: Mistake, reflections: list[str], before: Mistake | None) -> Steps:
        recovers = self.rng.random() < RECOVERY_RATE
        if slip.mode == GUESS:
            wrong = Query(slip.sql, self.query.schema)
            seen = yield self._say(_GUESS, table=wrong.first_table), f"execute[{slip.sql}]"
            if recovers and _is_error(seen):
                yield self._say(_NO_TABLE), "execute[SHOW TABLES]"
                yield from self._look_again(_FIRST, used=2)
                yield from self._answer(_PLAN)
            else:
                yield self._check(seen, wrong), "submit"
            return
        blind = slip.kind in ("guessed_column", "repeated_error")
        looked = [] if blind else self.tables[:1] if slip.kind == "forgotten_join" else self.tables
        yield from self._explore(reflections, before, looked, used=0)
        if slip.mode == EARLY:
            yield self._say(_EARLY), "submit"
            return
        wrong = Query(slip.sql, self.query.schema)
        seen = yield self._say(_PLAN, d=describe(wrong)), f"execute[{slip.sql}]"
        while slip.mode == REPEAT:  # until the environment or the step limit ends the trial
            seen = yield self._say(_AGAIN), f"execute[{slip.sql}]"
        if recovers and _is_error(seen):
            yield from self._look_again(_NO_COLUMN, used=len(looked) + 2, known=looked)
            yield from self._answer(_PLAN)
        else:
            yield self._check(seen, wrong), "submit"

    def _look_again(self, templates: tuple[str, ...], used: int, known: list[str] | None = None) -> Steps:
        """After an error: the columns of the tables not looked at before."""
        unseen = [t for t in self.tables if t not in (known or [])]
        for i, table in enumerate(unseen[: max(0, self.max_steps - used - 2)]):
            words = {"tables": _and(self.tables), "table": table, "before": self.tables[self.tables.index(table) - 1]}
            yield self._say(_NEXT if i else templates, **words), f"execute[{_desc(table)}]"


def _is_error(observation: str) -> bool:
    return observation.lstrip().lower().startswith("error")


def _desc(table: str) -> str:
    return f"DESC {table}" if table.isidentifier() else f"DESC `{table}`"


def _names(texts: list[str], table: str) -> bool:
    return any(re.search(rf"\b{re.escape(table)}\b", text, re.IGNORECASE) for text in texts)


def _and(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 2 else items)


def _short(text: str, words: int) -> str:
    """The first `words` words, not ending in a comma or a small connecting word."""
    parts = text.split()
    if len(parts) > words:
        parts = parts[:words]
        while len(parts) > 1 and parts[-1].lower().rstrip(",:") in _SMALL:
            parts.pop()
    return " ".join(parts).rstrip(",:;")


_SMALL = {
    "",
    "a",
    "an",
    "and",
    "the",
    "of",
    "on",
    "in",
    "is",
    "to",
    "with",
    "by",
    "or",
    "for",
    "per",
    "so",
    "that",
    "like",
    "=",
    "!=",
    "<",
    ">",
    "<=",
    ">=",
}


# ------------------------------------------------------------------------------------------- behind a chat endpoint


class ChatExpertError(RuntimeError):
    """The endpoint could not be reached, refused the request, or sent something else than a chat answer."""


class ChatExpert(Expert):
    """An expert behind an OpenAI-compatible endpoint (`base_url` such as ``http://localhost:8000/v1``).

    It reads the planner's prompt and the transcript and writes one thought and action per step; after a failed
    trial it reads the reflector's prompt. `api_key` defaults to the environment variable OPENAI_API_KEY; without
    either no key is sent. Connection failures, time-outs and the statuses 429 and 5xx are tried `retries` times
    more, waiting `backoff`, 2 `backoff`, 4 `backoff` ... seconds. `extra` is merged into the request body, and a
    value of None there takes a field out.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        temperature: float = 0.7,
        max_tokens: int = 300,
        timeout: float = 60.0,
        retries: int = 3,
        backoff: float = 1.0,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url should start with http:// or https://, got {base_url!r}")
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.model, self.temperature, self.max_tokens = model, temperature, max_tokens
        self.timeout, self.retries, self.backoff, self.extra = timeout, retries, backoff, dict(extra or {})
        self._key = api_key if api_key is not None else os.environ.get("OPENAI_API_KEY", "")

    def session(
        self, env: Env, task: Task, rng: random.Random, mistake_rate: float, max_trials: int, max_steps: int
    ) -> Session:
        return _ChatSession(self, env, task, rng)

    def complete(self, system: str, user: str, seed: int, stop: list[str] | None = None) -> str:
        """One chat answer. Raises ChatExpertError."""
        body = {
            "model": self.model,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": seed,
            "stop": stop,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
        }
        body = {name: value for name, value in (body | self.extra).items() if value is not None}
        data = self._post(json.dumps(body).encode())
        try:
            content = json.loads(data)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            content = None
        if not isinstance(content, str):
            raise ChatExpertError(f"{self.url} sent no chat completion (choices[0].message.content): {data[:200]!r}")
        return content

    def _post(self, data: bytes) -> bytes:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.backoff * 2 ** (attempt - 1))
            try:
                request = urllib.request.Request(self.url, data, headers)
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return answer.read()
            except urllib.error.HTTPError as error:
                problem = f"answered HTTP {error.code} {error.reason}: {error.read(300).decode('utf-8', 'replace')}"
                if error.code != 429 and error.code < 500:
                    break
            except (OSError, http.client.HTTPException) as error:
                problem = f"could not be reached: {getattr(error, 'reason', None) or error or type(error).__name__}"
        raise ChatExpertError(f"{self.url} {problem}")


class _ChatSession(Session):
    def __init__(self, expert: ChatExpert, env: Env, task: Task, rng: random.Random) -> None:
        self.expert, self.env, self.task, self.rng = expert, env, task, rng

    def attempt(self, reflections: list[str]) -> Steps:
        head = prompts.planner_prompt(self.task.question, reflections)
        system = f"{self.env.instruction}\nGo on with the transcript: write one thought and one action, no more."
        transcript, step = prompts.cue(1), 1
        while True:
            answer = self.expert.complete(system, f"{head}\n{transcript}", self.rng.getrandbits(31), ["\nObservation"])
            thought, action = prompts.parse_agent_text(answer.strip() + "\n")
            thought = " ".join(re.sub(r"^Thought(?: \d+)?:", "", thought).split())
            observation = yield thought, action
            transcript += prompts.agent_text(step, thought, action) + prompts.environment_text(step, observation)
            step += 1

    def reflect(self, trial: Trial) -> str:
        head = prompts.planner_prompt(self.task.question, trial.reflections)
        user = f"{head}\n{trial.transcript()}{prompts.verdict(trial.reward)}"
        answer = self.expert.complete(self.env.instruction, user, self.rng.getrandbits(31))
        text = re.sub(r"^Reflection(?: \d+)?:\s*", "", " ".join(answer.split()))
        if not text:
            raise ChatExpertError(f"{self.expert.url} sent an empty reflection for task {self.task.id}")
        return text


EXPERTS: dict[str, type[Expert]] = {"intercode_sql": ScriptedSQLExpert}
"""Environment name -> its scripted expert; another environment adds its own here."""
