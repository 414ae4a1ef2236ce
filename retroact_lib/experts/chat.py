"""An expert behind any OpenAI-compatible endpoint."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from retroact_lib import prompts
from retroact_lib.envs.base import Env, Task
from retroact_lib.experts.base import Expert, Session, Steps
from retroact_lib.trajectories import Trial, Turn


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
        return self._go_on(prompts.planner_prompt(self.task.question, reflections), prompts.cue(1), 1)

    def take_over(self, turns: Sequence[Turn]) -> Steps:
        begun = (turn.text + prompts.environment_text(step, turn.observation) for step, turn in enumerate(turns, 1))
        transcript = prompts.cue(1) + "".join(begun)
        return self._go_on(prompts.planner_prompt(self.task.question), transcript, len(turns) + 1)

    def judge(self, trial: Trial) -> str:
        return self.reflect(trial)

    def _go_on(self, head: str, transcript: str, step: int) -> Steps:
        """Steps from `step` on, after the `transcript` of those before."""
        system = f"{self.env.instruction}\nGo on with the transcript: write one thought and one action, no more."
        while True:
            answer = self.expert.complete(system, f"{head}\n{transcript}", self.rng.getrandbits(31), ["\nObservation"])
            thought, action = prompts.parse_agent_text(answer.strip() + "\n")
            thought = " ".join(re.sub(r"^Thought(?: \d+)?:", "", thought).split())
            observation = yield thought, action
            transcript += prompts.agent_text(step, thought, action) + prompts.environment_text(step, observation)
            step += 1

    def reflect(self, trial: Trial) -> str:
        head = prompts.planner_prompt(self.task.question, trial.reflections)
        user = f"{head}\n{trial.transcript()}{prompts.verdict(None)}"
        answer = self.expert.complete(self.env.instruction, user, self.rng.getrandbits(31))
        text = re.sub(r"^Reflection(?: \d+)?:\s*", "", " ".join(answer.split()))
        if not text:
            raise ChatExpertError(f"{self.expert.url} sent an empty reflection for task {self.task.id}")
        return text
