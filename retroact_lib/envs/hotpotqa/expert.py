"""The expert for HotpotQA: reads the supporting articles one after the other, or slips as a hasty reader does.

It knows which sentences matter, and by which word to look one up that an observation does not show. Its thoughts come
from the question and from what it has read by then. A search that finds another article, or a word that is not in it,
shows at once, and the expert puts it differently in the same trial. A wrong answer ends a trial, so it is left to the
reflection.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Generator, Mapping, Sequence

from retroact_lib.envs.base import Env, Task, listed
from retroact_lib.envs.hotpotqa.articles import bare, fold, has_phrase, the
from retroact_lib.experts.base import Expert, Move, Session, Steps
from retroact_lib.trajectories import Trial, Turn

SLIPS = {
    "bridge": ("one_hop", "bridge_entity", "wrong_entity", "near_miss"),
    "comparison": ("one_hop", "wrong_side", "wrong_entity"),
}
"""HotpotQA's type -> the slips that end a trial in a wrong answer."""
MENDED = ("described", "misspelt", "strayed", "no_result", "guessed")
"""The slips that an observation shows: a search by description or by a garbled name, another article, a word that is
not there, a guess that the second article contradicts."""
MENDED_SHARE = 0.6
"""Share of the slips that are of the second kind."""

_FINISH = re.compile(r"\s*finish\s*\[(.*)\]\.?\s*", re.S | re.I)
_THING = re.compile(r"[A-Z][\w'-]*(?: (?:of (?:the )?|the )?[A-Z][\w'-]*)*|[+]?\d+(?:,\d{3})*|\.[a-z]{2}\b")
_FIRST_WORD = re.compile(r"^(It|Its|The|He|She|His|Her|In)\b")
_NUMBER = re.compile(r"\d+(?:,\d{3})*")
_GROUPS = ("", " thousand", " million", " billion", " trillion")
_FIRST = ("I start with {title}.", "First I look for {title}.")
_NEXT = ("{fact} Next I search for {title}.", "{fact} So I need {title}.")
_ASTRAY = ("{fact} I try {title}.", "{fact} Perhaps {title} says it.")
_FOUND = ("That finds {found}, not {title}. I search for {title}.", "I got {found}. I need {title}.")
_GARBLED = ("There is no {wrong}. I mean {title}.", "Nothing is called {wrong}, so I search for {title}.")
_CUT_SHORT = ("{title} is cut short here. I search for it alone.", "That finds {found}. I search for {title} alone.")
_STRAYED = ("This is {wrong}, and I need {title}. I search for it.", "That is about {wrong}, so I search for {title}.")
_ANSWER = ("{fact} So the answer is {answer}.", "{fact} That gives the answer: {answer}.")
_REFUSED = ("I answered {answer} before, which was wrong.", "It is not {answer}, as the reflection says.")
_REFLECTIONS = ("I {did}. Next time I will {plan}.", "My mistake: I {did}. Plan: {plan}.")


class ReaderExpert(Expert):
    """Searches for the supporting articles in order and answers from the sentences that matter."""

    def session(
        self, env: Env, task: Task, rng: random.Random, mistake_rate: float, max_trials: int, max_steps: int
    ) -> Session:
        for name in ("answer", "type", "supporting", "context"):
            if name not in task.meta:
                raise ValueError(f"task {task.id} has no {name!r} in its meta, which the HotpotQA expert needs")
        return _ReaderSession(task, rng, mistake_rate, env.is_error)


class _ReaderSession(Session):
    def __init__(self, task: Task, rng: random.Random, mistake_rate: float, is_error: Callable[[str], bool]) -> None:
        self.rng, self.question, self.answer, self.is_error = rng, task.question, task.meta["answer"], is_error
        self.pages = {title: [sentence.strip() for sentence in page] for title, page in task.meta["context"]}
        self.needed: dict[str, list[str]] = {}
        """Title -> the sentences of it that matter, in the order of reading."""
        for title, number in task.meta["supporting"]:
            self.needed.setdefault(title, []).extend(self.pages[title][number : number + 1])
        self.comparison = task.meta["type"] == "comparison"
        asked = f" {fold(self.question)} "
        self.together = self.comparison or all(f" {fold(title)} " in asked for title in self.needed)
        """Whether the answer follows from all articles together, not from the last."""
        slips = SLIPS["comparison" if self.comparison else "bridge"]
        if rng.random() < MENDED_SHARE:
            slips = MENDED if self.comparison and len(self.needed) > 1 else MENDED[:-1]
        self.slip = rng.choice(slips) if rng.random() < mistake_rate else ""
        self.did = self.plan = ""
        self.aside = ""
        """What is still to be said of the last observation."""
        self.read: set[str] = set()
        """The sentences that matter and have been seen."""
        self.refused: list[str] = []
        """The answers of failed trials that a reflection names."""

    def attempt(self, reflections: list[str]) -> Steps:
        slip, self.slip = self.slip, ""
        self.did = "gave an answer that was not accepted"
        self.plan = f"read {listed(self.needed)} again and answer in fewer words"
        return self._careful(slip) if slip in ("", *MENDED) else getattr(self, f"_{slip}")()

    def take_over(self, turns: Sequence[Turn]) -> Steps:
        """Say which error the last step showed, read what has not been read, and answer."""
        seen, last = " ".join(turn.observation for turn in turns), turns[-1]
        known = [title for title, facts in self.needed.items() if facts and all(fact in seen for fact in facts)]
        self.read.update(fact for title in known for fact in self.needed[title])
        opened: dict[str, str] = {}
        """Title -> what the last step showed of that article."""
        if self.is_error(last.observation):
            said = last.observation.partition(". Similar:")[0].rstrip(".")
            word = re.search(r"\[(.*)\]", last.action, re.S)
            self.aside = f"{said} for {' '.join(word[1].split())}." if said.startswith("No ") and word else f"{said}."
        elif found := re.fullmatch(r"Search\[(.*)\]", last.action.strip(), re.S | re.I):
            opened[found[1]] = last.observation
        left = sorted((title for title in self.needed if title not in known), key=lambda title: title not in opened)
        learnt = {title: _named(title, " ".join(self.needed[title])) for title in known}
        fact = yield from self._read(left, learnt=learnt, opened=opened)
        yield self._conclude(fact, self.answer)

    def reflect(self, trial: Trial) -> str:
        given = _given(trial)
        if not given:
            self.did = "gave no answer"
        elif given not in self.refused and f"answered {given}" in self.did:
            self.refused.append(given)
        return self.rng.choice(_REFLECTIONS).format(did=self.did, plan=self.plan)

    def judge(self, trial: Trial) -> str:
        """By what was not read, in the order in which one title leads to the next, or else by the answer."""
        seen = " ".join(turn.observation for turn in trial.turns)
        unread = [title for title, facts in self.needed.items() if not all(fact in seen for fact in facts)]
        self.did = f"answered {_given(trial)}"
        if unread:
            named = has_phrase(f"{self.question} {seen}", unread[0])
            self.did += f" without reading {f'what {unread[0]} says' if named else 'what the question needs'}"
            self.plan = f"search for {unread[0]}" if named else "search for what the question names first"
        else:
            self.did += f", which is not what {listed(self.needed)} say"
            self.plan = f"read {listed(self.needed) if self.together else list(self.needed)[-1]} for the answer"
        return self.reflect(trial)

    # ---- a careful trial

    def _careful(self, slip: str = "") -> Steps:
        """Read what matters and answer; with a slip on the way that shows, and is put right."""
        titles = list(self.needed)
        at = titles[-1] if slip == "guessed" else self.rng.choice(titles)
        fact = yield from self._read(titles, slip, at)
        yield self._conclude(fact, self.answer, self._other_side() if slip == "guessed" else "")

    def _read(
        self,
        titles: list[str],
        slip: str = "",
        at: str = "",
        learnt: Mapping[str, str] | None = None,
        opened: Mapping[str, str] | None = None,
    ) -> Generator[Move, str, str]:
        """Search for the articles in turn, with a slip before the one named `at`; returns what is `_known` then.

        `learnt` is what other articles have told before, by title, and `opened` what shows of one that is open.
        """
        learnt = dict(learnt or {})
        for title in titles:
            said = self._say(_NEXT, self._known(learnt), title) if learnt else self._say(_FIRST, title=title)
            said, here, seen = self._noted(said), slip if title == at else "", (opened or {}).get(title, "")
            if here in ("described", "misspelt"):
                said, seen = yield from self._described(said, title, here == "misspelt")
            elif here == "strayed":
                said = yield from self._strayed(said, title)
            learnt[title] = yield from self._open(said, title, self.needed[title], here, seen)
        return self._known(learnt)

    def _noted(self, thought: str) -> str:
        """The thought, after what is still to be said of the observation before."""
        aside, self.aside = self.aside, ""
        return f"{aside} {thought}".strip()

    def _open(
        self, thought: str, title: str, facts: list[str], slip: str = "", seen: str = ""
    ) -> Generator[Move, str, str]:
        """Search for an article unless it was `seen`, look up those of its `facts` that are not shown, return them."""
        if slip == "guessed":
            thought = f"{thought} The answer may be {self._other_side()}."
        if not seen:
            seen = yield Move(thought, f"Search[{title}]", slip in ("guessed", "astray"))
        if slip == "no_result" and (word := self._absent(title)):
            found = yield Move(f"I look up {word} in the article on {title}.", f"Lookup[{word}]", True)
            self.aside = f"{found.rstrip('.')} for {word}."
        for fact in facts:
            for word in self._keywords(fact):
                if fact in seen:
                    break
                goes_on = self._noted("" if self.aside else f"The article on {title} goes on.")
                seen += yield Move(f"{goes_on} I look up {word} in it.", f"Lookup[{word}]")
        read = [fact for fact in facts if fact in seen]
        self.read.update(read)
        return _named(title, " ".join(read) or _first_sentence(seen))

    def _described(self, thought: str, title: str, garbled: bool) -> Generator[Move, str, tuple[str, str]]:
        """Search by a description or a garbled name; returns the next thought, and what was found if it is enough."""
        words = self._keywords(" ".join(self.needed[title]))
        wrong = self._misspelt(title) if garbled else f"{words[0] if words else 'article'} of {title}"
        seen = yield Move(thought, f"Search[{wrong}]", True)
        if all(fact in seen for fact in self.needed[title]):
            return "", seen
        if garbled and self.is_error(seen):
            return self._say(_GARBLED, title=title, wrong=wrong), ""
        found = [other for other in self.pages if f"({other}) " in seen]
        return self._say(_CUT_SHORT if title in found else _FOUND, title=title, found=listed(found) or "nothing"), ""

    def _strayed(self, thought: str, title: str) -> Generator[Move, str, str]:
        """Open an article that is like the one to read, and see that it is not the one; returns the next thought."""
        wrong = self._stranger(title)
        yield Move(thought.replace(title, wrong), f"Search[{wrong}]", True)
        return self._say(_STRAYED, title=title, wrong=wrong)

    def _misspelt(self, title: str) -> str:
        """A name that begins like the title and ends like another one."""
        other = self.rng.choice([other for other in self.pages if other != title] or [title[::-1]])
        return title[: (len(title) + 1) // 2] + other[len(other) // 2 :].lower()

    def _absent(self, title: str) -> str:
        """A word of the question that the article does not have."""
        there = fold(f"{title} {' '.join(self.pages[title])}")
        return next((word for word in re.findall(r"\b[a-z]{5,}", self.question) if fold(word) not in there), "")

    def _known(self, learnt: Mapping[str, str]) -> str:
        """What to say of what has been read: both sides of a comparison, the last hop of a bridge, no long lists."""
        said = [learnt[title] for title in self.needed if title in learnt]
        if self.together:
            return " ".join(said) if self.comparison else ""
        return said[-1]

    def _keywords(self, fact: str) -> list[str]:
        """Words of `fact` to look up in turn: those that the question has too, in whatever form, then the last ones."""
        words = [word for word in dict.fromkeys(re.findall(r"\b[a-z]{5,}", fact)) if word not in self.answer]
        alike = [word for word in words if word[:5] in self.question.lower()]
        return [*alike, *(word for word in reversed(words) if word not in alike)][:3]

    def _conclude(self, fact: str, answer: str, guess: str = "", slip: bool = False) -> Move:
        """The last thought, which takes back a `guess` and leaves out what was `refused`, and the answer."""
        told = f"{answer}, not {guess}" if guess else answer
        known = self._say(_REFUSED, answer=listed(self.refused)) if self.refused else ""
        thought = self._say(_ANSWER, " ".join(filter(None, (fact, known, self._because(answer)))), answer=told)
        return Move(self._noted(thought), f"Finish[{answer}]", slip)

    def _because(self, answer: str) -> str:
        """How `answer` follows from the facts of two articles, in words; '' where that takes more than comparing."""
        facts = {title: " ".join(said) for title, said in self.needed.items()}
        if not self.together or len(facts) != 2 or not self.read.issuperset(sum(self.needed.values(), [])):
            return ""
        if answer in ("yes", "no"):
            return _same_or_not(facts) if answer == self.answer else ""
        if all(has_phrase(said, answer) for said in facts.values()):
            return f"{_checked(facts, answer)} Both name {answer}.".strip()
        numbers = {title: found[0] for title, said in facts.items() if len(found := _NUMBER.findall(said)) == 1}
        value = {title: int(number.replace(",", "")) for title, number in numbers.items()}
        if len(set(value.values())) < 2 or not {answer, self.answer} <= set(numbers):
            return ""
        (other,) = set(numbers) - {answer}
        (loser,) = set(numbers) - {self.answer}
        more = value[self.answer] > value[loser]
        dates = all(re.fullmatch(r"1\d{3}|20\d\d", number) for number in numbers.values())
        relation = ("after" if more else "before") if dates else ("more than" if more else "less than")
        large = "" if dates else _sizes(list(numbers.values()))
        one, another = (f"{the(title)}'s {numbers[title]}" for title in (answer, other))
        return f"{large} {one[0].upper()}{one[1:]} is {relation} {another}.".strip()

    def _say(self, templates: tuple[str, ...], fact: str = "", title: str = "", answer: str = "", **more: str) -> str:
        return self.rng.choice(templates).format(fact=fact, title=title, answer=answer, **more).strip()

    # ---- slips

    def _one_hop(self) -> Steps:
        """Answer after the first article, from what it says in place of the answer."""
        first, *others = self.needed
        fact = yield from self._read([first])
        guess = self._other_side() if self.comparison else self._counterpart(first)
        self.did = f"answered {guess} after reading {first} alone"
        self.plan = f"search for {listed(others)} too before I answer" if others else f"read {first} to the end"
        yield Move(self._say(_ANSWER, fact, answer=guess), f"Finish[{guess}]", True)

    def _bridge_entity(self) -> Steps:
        """Take the article that is to be read next for the answer."""
        first, *others = self.needed
        fact = yield from self._read([first])
        guess = others[-1] if others else first
        self.did = f"answered {guess}, which only leads to the answer"
        self.plan = f"search for {guess} and find there what the question asks for"
        yield Move(self._say(_ANSWER, fact, answer=guess), f"Finish[{guess}]", True)

    def _wrong_entity(self) -> Steps:
        """Search for another article than the question asks about."""
        first, *others = self.needed
        if self.comparison and others:
            yield from self._astray((yield from self._read([first])), others[-1], others[-1])
        else:
            yield from self._astray("", list(self.needed)[-1], first)

    def _near_miss(self) -> Steps:
        """Read the first article, then another than it names, and copy from there."""
        first, *others = self.needed
        wanted = others[-1] if others else first
        yield from self._astray((yield from self._read([first])), wanted, wanted)

    def _astray(self, fact: str, wanted: str, missed: str) -> Steps:
        """Open an article that is like `wanted`, answer from it, and see that `missed` was the one to search for."""
        wrong = self._stranger(wanted)
        alike = self._nearest(wrong, self.needed[wanted])
        learnt = yield from self._open(self._say(_ASTRAY, fact, wrong), wrong, [alike], "astray")
        guess = self._other_side() if self.comparison else self._counterpart(wrong)
        self.did = f"read {wrong}, which the question is not about, and answered {guess}"
        self.plan = f"search for {missed} instead"
        yield Move(self._say(_ANSWER, f"{fact} {learnt}".strip(), answer=guess), f"Finish[{guess}]", True)

    def _wrong_side(self) -> Steps:
        """Read both and draw the wrong conclusion."""
        fact = yield from self._read(list(self.needed))
        guess = self._other_side()
        self.did = f"compared {listed(self.needed)} the wrong way round and answered {guess}"
        self.plan = f"answer {self.answer}"
        yield self._conclude(fact, guess, slip=True)

    # ---- what a hasty reader takes for the answer

    def _stranger(self, wanted: str) -> str:
        """A paragraph that does not matter and is most like `wanted`, if possible without the answer."""
        facts = self.needed[wanted]
        said = {title: self._nearest(title, facts) for title in self.pages if title not in self.needed}
        alike = {title: _shared(sentence, facts) for title, sentence in said.items() if self.answer not in sentence}
        nearest = [title for title in alike if alike[title] == max(alike.values())]
        return self.rng.choice(nearest or list(said) or list(self.pages))

    def _nearest(self, title: str, facts: list[str]) -> str:
        """The sentence of an article that is most like `facts`."""
        return max(self.pages[title], key=lambda said: _shared(said, facts), default="")

    def _other_side(self) -> str:
        """The other answer of a comparison."""
        if self.answer.lower() in ("yes", "no"):
            return "no" if self.answer.lower() == "yes" else "yes"
        others = [title for title in self.needed if bare(title) != bare(self.answer)]
        return others[0] if others else self._stranger(next(iter(self.needed)))

    def _counterpart(self, title: str) -> str:
        """What the article `title` says in place of the answer: from its sentence most like the one that has it."""
        return self._phrase(title, self._nearest(title, list(self.needed.values())[-1]))

    def _phrase(self, title: str, sentence: str) -> str:
        """A title, a name or a number in `sentence`, other than that of its article and the answer."""
        said = _FIRST_WORD.sub("", sentence).replace(title, "")
        titles = [other for other in self.pages if has_phrase(said, other) and other not in self.answer]
        things = [thing for thing in _THING.findall(said) if thing not in self.answer]
        return self.rng.choice(titles or things or [title])


def _shared(sentence: str, facts: list[str]) -> int:
    """How many words of `facts` stand in `sentence`."""
    return len(set(fold(" ".join(facts)).split()) & set(fold(sentence).split()))


def _same_or_not(facts: dict[str, str]) -> str:
    """Whether two facts that begin alike, titles aside, end alike; '' where they do not."""
    one, other = (fold(said.replace(title, "")).removeprefix("the ").split() for title, said in facts.items())
    return "They are the same." if one == other else "They differ." if one[:3] == other[:3] else ""


def _sizes(numbers: Sequence[str]) -> str:
    """How large two numbers are, by their leading digits, in their order; '' where that tells nothing apart."""
    groups = [number.count(",") for number in numbers]
    if not 0 < max(groups) < len(_GROUPS):
        return ""
    first, other = (number.split(",")[0] + _GROUPS[count] for number, count in zip(numbers, groups, strict=True))
    return "" if first == other else f"That is {first} against {other}."


def _checked(facts: Mapping[str, str], answer: str) -> str:
    """The names in the shorter fact up to `answer`, each with whether the other fact has it; '' if it lacks that."""
    told = [
        [name for name in _THING.findall(_FIRST_WORD.sub("", said)) if name != title] for title, said in facts.items()
    ]
    names, others = sorted(told, key=len)
    if answer not in names:
        return ""
    there = {name: "yes" if name in others else "no" for name in names[: names.index(answer) + 1]}
    return f"{', '.join(f'{name}: {found}' for name, found in there.items())}."


def _named(title: str, said: str) -> str:
    """What an article says, with its title in place of a pronoun, or before it."""
    said = re.sub(r"^It(s?)\b", lambda found: title + ("'s" if found[1] else ""), said)
    return said if title in said else f"{title}: {said}"


def _first_sentence(observation: str) -> str:
    """The first sentence of an article, without the title before it."""
    return re.split(r"(?<=\.) ", re.sub(r"^\(.*?\) ", "", observation), maxsplit=1)[0]


def _given(trial: Trial) -> str:
    """The answer that ended a trial; '' if none did."""
    found = _FINISH.fullmatch(trial.turns[-1].action) if trial.turns else None
    return " ".join(found[1].split()) if found else ""
