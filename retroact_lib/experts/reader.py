"""The expert for HotpotQA: reads the supporting articles one after the other, or slips as a hasty reader does.

It knows which sentences matter. What it says comes from the question and from what it has read by then.
"""

from __future__ import annotations

import random
import re
from collections.abc import Generator

from retroact_lib.envs.base import Env, Task
from retroact_lib.experts.base import Expert, Session, Steps
from retroact_lib.trajectories import Trial

SLIPS = {
    "bridge": ("one_hop", "bridge_entity", "wrong_entity", "near_miss"),
    "comparison": ("one_hop", "wrong_side", "wrong_entity"),
}
"""HotpotQA's type -> the slips that are drawn from."""
LOOKUP_RATE = 0.2
"""Chance that the expert looks up the sentence that matters in the second article."""

_THING = re.compile(r"[A-Z][\w'-]*(?: [A-Z][\w'-]*)*|[+]?\d[\d,]*")
_FIRST = ("I start with {}.", "First I look for {}.", "The question names {}. I search for it.")
_NEXT = ("{fact} Next I search for {title}.", "{fact} So I need {title}.")
_ANSWER = ("{fact} So the answer is {answer}.", "{fact} That gives the answer: {answer}.")
_REFLECTIONS = ("I {did}. Next time I will {plan}.", "My mistake: I {did}. Plan: {plan}.")


class ReaderExpert(Expert):
    """Searches for the supporting articles in order and answers from the sentences that matter."""

    def session(
        self, env: Env, task: Task, rng: random.Random, mistake_rate: float, max_trials: int, max_steps: int
    ) -> Session:
        for name in ("answer", "type", "supporting", "context"):
            if name not in task.meta:
                raise ValueError(f"task {task.id} has no {name!r} in its meta, which the HotpotQA expert needs")
        return _ReaderSession(task, rng, mistake_rate)


class _ReaderSession(Session):
    def __init__(self, task: Task, rng: random.Random, mistake_rate: float) -> None:
        self.rng, self.question, self.answer = rng, task.question, task.meta["answer"]
        self.pages = {title: [sentence.strip() for sentence in page] for title, page in task.meta["context"]}
        self.needed: dict[str, list[str]] = {}
        """Title -> the sentences of it that matter, in the order of reading."""
        for title, number in task.meta["supporting"]:
            self.needed.setdefault(title, []).extend(self.pages[title][number : number + 1])
        self.comparison = task.meta["type"] == "comparison"
        self.together = all(title in self.question for title in self.needed)
        """Whether the question names all articles: the answer follows from them together, not from the last."""
        kinds = SLIPS["comparison" if self.comparison else "bridge"]
        self.slip = rng.choice(kinds) if rng.random() < mistake_rate else ""
        self.did = self.plan = ""

    def attempt(self, reflections: list[str]) -> Steps:
        slip, self.slip = self.slip, ""
        self.did = "gave an answer that was not accepted"
        self.plan = f"read {_and(list(self.needed))} again and answer in fewer words"
        return self._careful() if not slip else getattr(self, f"_{slip}")()

    def reflect(self, trial: Trial) -> str:
        return self.rng.choice(_REFLECTIONS).format(did=self.did, plan=self.plan)

    # ---- a careful trial

    def _careful(self) -> Steps:
        said = yield from self._read(list(self.needed))
        yield self._say(_ANSWER, fact=said, answer=self.answer), f"Finish[{self.answer}]"

    def _read(self, titles: list[str]) -> Generator[tuple[str, str], str, str]:
        """Search for the articles in turn; returns what has been learnt and not been said."""
        fact = ""
        for i, title in enumerate(titles):
            thought = self._say(_NEXT, fact=fact, title=title) if i else self._say(_FIRST).format(title)
            seen = yield thought, f"Search[{title}]"
            facts = self.needed.get(title, [])
            if facts and i and self.rng.random() < LOOKUP_RATE and (word := self._keyword(facts[0], title)):
                yield f"I look up {word} in it.", f"Lookup[{word}]"
            known = " ".join(facts) or _start(seen)
            known = known if title in known else f"{title}: {known}"
            fact = f"{fact} {known}".strip() if self.together else known
        return fact

    def _keyword(self, fact: str, title: str) -> str:
        """A word of the question that stands in `fact`, and is not of the title."""
        words = {word.lower() for word in re.findall(r"\w{5,}", fact)} - {w.lower() for w in re.findall(r"\w+", title)}
        return next((word for word in re.findall(r"\w{5,}", self.question) if word.lower() in words), "")

    def _say(self, templates: tuple[str, ...], **words: str) -> str:
        said = self.rng.choice(templates)
        return said.format(**words).strip() if words else said

    # ---- slips

    def _one_hop(self) -> Steps:
        """Answer after the first article."""
        first, *others = self.needed
        said = yield from self._read([first])
        guess = self._other_side() if self.comparison else self._phrase(first, self.needed[first])
        self.did = f"answered {guess} after reading {first} alone"
        self.plan = f"search for {_and(others)} too before I answer" if others else f"read {first} to the end"
        yield self._say(_ANSWER, fact=said, answer=guess), f"Finish[{guess}]"

    def _bridge_entity(self) -> Steps:
        """Take the article that is to be read next for the answer."""
        first, *others = self.needed
        said = yield from self._read([first])
        guess = others[-1] if others else first
        self.did = f"answered {guess}, which only leads to the answer"
        self.plan = f"search for {guess} and find there what the question asks for"
        yield self._say(_ANSWER, fact=said, answer=guess), f"Finish[{guess}]"

    def _wrong_entity(self) -> Steps:
        """Search for another article than the question names, and answer from it."""
        wrong = self._stranger()
        yield self._say(_FIRST).format(wrong), f"Search[{wrong}]"
        guess = self._other_side() if self.comparison else self._phrase(wrong, self.pages[wrong])
        self.did = f"searched for {wrong}, which the question does not ask about"
        self.plan = f"search for {next(iter(self.needed))} first"
        yield f"I answer from this: {guess}.", f"Finish[{guess}]"

    def _near_miss(self) -> Steps:
        """Read the first article, then another than it names."""
        first, *others = self.needed
        wrong = self._stranger()
        said = yield from self._read([first])
        yield self._say(_NEXT, fact=said, title=wrong), f"Search[{wrong}]"
        guess = self._phrase(wrong, self.pages[wrong])
        self.did = f"read {wrong} after {first}"
        self.plan = f"search for {_and(others)} instead" if others else f"answer from {first}"
        yield f"I answer from this: {guess}.", f"Finish[{guess}]"

    def _wrong_side(self) -> Steps:
        """Read both and draw the wrong conclusion."""
        said = yield from self._read(list(self.needed))
        guess = self._other_side()
        self.did = f"compared them the wrong way round and answered {guess}"
        self.plan = f"read the facts about {_and(list(self.needed))} again and compare them carefully"
        yield self._say(_ANSWER, fact=said, answer=guess), f"Finish[{guess}]"

    def _stranger(self) -> str:
        """The title of a paragraph that does not matter."""
        return self.rng.choice([title for title in self.pages if title not in self.needed] or list(self.pages))

    def _other_side(self) -> str:
        """The other answer of a comparison."""
        if self.answer.lower() in ("yes", "no"):
            return "no" if self.answer.lower() == "yes" else "yes"
        return next((title for title in self.needed if title != self.answer), self._stranger())

    def _phrase(self, title: str, sentences: list[str]) -> str:
        """A name or a number in `sentences`, other than `title`, that a hasty reader takes for the answer."""
        found = [thing for sentence in sentences for thing in _THING.findall(sentence.partition(" ")[2])]
        return self.rng.choice([thing for thing in found if thing not in (title, self.answer)] or [title])


def _start(text: str) -> str:
    """The first sentence."""
    return re.split(r"(?<=\.) ", text, maxsplit=1)[0]


def _and(names: list[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
