"""The process that plays ALFWorld games: a line of JSON in, a line of JSON out.

TextWorld's planner library redirects sys.stdout, overwrites sys.argv, cannot be used from two threads and grows with
every game, and the order of its listings follows string hashes. So games are played in processes of their own, started
by `engine` with a fixed PYTHONHASHSEED; nothing else imports this module.

    {"do": "open", "game": path, "expert": null | "handcoded" | "planner", "seed": n}   ->  {"id": n, "text": intro}
    {"do": "step", "id": n, "command": text}   ->  {"text": observation, "won": bool}
    {"do": "advise", "id": n}                  ->  {"command": text | null}
    {"do": "commands", "id": n}                ->  {"commands": [...]}
    {"do": "close", "id": n}                   ->  {}

Whatever fails is answered by {"error": text}; the games that are open go on.
"""

from __future__ import annotations

import ast
import json
import os
import random
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path

UNKNOWN = "UNKNOWN GOAL"
PUT, OLD_PUT = 'template :: "move {o} to {r}"', 'template :: "put {o} in/on {r}"'
"""How games word a put, and older ones did; the present word is the one that the engine takes for both."""
_GOAL = re.compile(r'(?<="Your task is to: )(?:\\.|[^"\\])*?(?=\.?")')
LONGEST_EXPRESSION = 200
"""Characters of an expression in a game's grammar."""
GAMES_KEPT = 512
"""Games whose translations are kept in memory; a translation is text of 0.1 to 1 MB."""


class CachedParser:
    """A TatSu parser that parses each text once. Its results are read, never changed."""

    def __init__(self, parser) -> None:
        self._parse = lru_cache(maxsize=50_000)(lambda text, rule: parser.parse(text, rule_name=rule))

    def parse(self, text: str, rule_name: str, **_tracing):
        return self._parse(text, rule_name)


class GrammarRefused(RuntimeError):
    """A game's grammar asks for more than text; no ValueError, which TextWorld answers by "Nothing happens."."""


@lru_cache(maxsize=10_000)
def _parsed(expression: str) -> ast.expr:
    if len(expression) > LONGEST_EXPRESSION:
        raise GrammarRefused(f"the grammar's expression {expression[:40]!r}... has {len(expression)} characters")
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except SyntaxError:
        raise GrammarRefused(f"the grammar's expression {expression!r} is none") from None


def written(expression: str, variables: Mapping[str, object]) -> object:
    """What ``o.indefinite + ' ' + o.name`` in a game's grammar stands for.

    A grammar comes with a game that somebody else may have made, and TextWorld hands its expressions to ``eval``. Here
    they are made of variables, their attributes, texts, sums and ``or`` alone. Raises GrammarRefused for anything else.
    """

    def value(node: ast.expr) -> object:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not set(node.value) & set("{}"):
            return node.value  # without braces, which TextWorld formats once more
        if isinstance(node, ast.Name) and node.id in variables:
            return variables[node.id]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and not node.attr.startswith("_"):
            return getattr(value(node.value), node.attr)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return str(value(node.left)) + str(value(node.right))
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
            return next(filter(None, map(value, node.values)), "")
        raise GrammarRefused(f"the grammar's expression {expression!r} is more than names, texts and sums")

    return value(_parsed(expression))


def mend_templates() -> None:
    """Let templates be read, not run. TextWorld runs them with their variables in locals(), a copy in Python 3.13."""
    from textworld.envs.pddl import textgen

    def derive(self, context=None):
        return [textgen.TerminalSymbol(written(self.expression, (context or self.context)["variables"]))]

    textgen.EvalSymbol.derive = derive


SPARE: list = []
"""Copies of the planner library whose games are closed; each holds one game at a time."""


def cache_pure_work() -> None:
    """Do once what TextWorld does again at every step and every reset, and leave out what does not show.

    Parsing a template and translating PDDL are functions of their text alone. Contexts need no deep copies: what is in
    them is replaced, never changed. A game loads its planner library anew in any case, so a used copy serves as well as
    a new one (33 MB each, and unloading one can crash). A game's trace stays what it was.
    """
    import fast_downward
    from textworld import logic
    from textworld.envs.pddl import logic as pddl_logic
    from textworld.envs.pddl import textgen

    for module in (logic, pddl_logic, textgen):
        module._PARSER = CachedParser(module._PARSER)
    textgen.copy_context = _copy_context
    fast_downward.pddl2sas = lru_cache(maxsize=2 * GAMES_KEPT)(fast_downward.pddl2sas)
    load_lib = fast_downward.load_lib
    fast_downward.load_lib = lambda: SPARE.pop() if SPARE else load_lib()


def _copy_context(context: dict) -> dict:
    return {**context, "variables": dict(context["variables"]), "mapping": dict(context["mapping"])}


@contextmanager
def one_translation() -> Iterator[None]:
    """Let the planner's own translation, which only the planner looks at, be the game's: translating takes longest."""
    import fast_downward

    translate = fast_downward.pddl2sas
    fast_downward.pddl2sas = lambda domain, problem, verbose=False, optimize=False: translate(domain, problem)
    try:
        yield
    finally:
        fast_downward.pddl2sas = translate


class Game:
    """One open game, with an expert at its side if asked for."""

    def __init__(self, path: str, expert: str | None, seed: int, stock: bool = False) -> None:
        import textworld
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        from textworld.envs.pddl import PddlEnv

        if expert not in (None, "handcoded", "planner"):
            raise ValueError(f"unknown expert {expert!r}; there are handcoded and planner")
        wanted = textworld.EnvInfos(
            admissible_commands=True, facts=expert == "handcoded", policy_commands=expert == "planner"
        )
        self.env = AlfredDemangler(PddlEnv(wanted))
        data, goal = json.loads(Path(path).read_text(encoding="utf-8")), UNKNOWN
        if not stock:
            data["grammar"] = data["grammar"].replace(OLD_PUT, PUT)
            if found := _GOAL.search(data["grammar"]):  # what is left is the grammar of all games, which is parsed once
                goal = json.loads(f'"{found[0]}"')
                data["grammar"] = _GOAL.sub(UNKNOWN, data["grammar"])
        try:
            with nullcontext() if stock or expert == "planner" else one_translation():
                self.env.load(data)
                self.state = self.env.reset()
        except BaseException:
            self.close()
            raise
        self.text, self.won, self.last = self.state.feedback.replace(UNKNOWN, goal), False, ""
        self.expert, self.random = expert, random.Random(seed)
        if expert == "handcoded":
            self.agent = _agent(path)
            self.agent.observe(self.text)

    def step(self, command: str) -> None:
        """After the end a game repeats its last words."""
        if not self.won:
            self.state, _, _ = self.env.step(command)
            self.text, self.won, self.last = self.state.feedback, bool(self.state["won"]), command

    def advise(self) -> str | None:
        """The expert's next command; None when it gives up."""
        if self.won:
            return None
        if self.expert == "planner":
            return next(iter(self.state["policy_commands"]), None)
        random.seed(self.random.getrandbits(32))  # the package's expert draws from the global generator
        try:
            command = self.agent.act(self.state, 0, False, self.last)
            while command.startswith("close "):  # closing is no part of any task
                command = self.agent.act(self.state, 0, False, "inventory")
        except (NameError, IndexError, KeyError):  # NameErrors are its "timeout" and "failed"
            return None
        return command if command in self.state["admissible_commands"] else "look"

    def close(self) -> None:
        SPARE.append(self.env.unwrapped.downward_lib)


def _agent(path: str):
    from alfworld.agents.expert import HandCodedTWAgent

    agent = HandCodedTWAgent(max_steps=200)
    agent.reset(path)
    track = agent.policy.update_state_tracking

    def update_state_tracking(state, last_action):  # it looks for "put", which alfworld 0.4 calls "move"
        track(state, "put" + last_action[4:] if last_action.startswith("move ") else last_action)

    agent.policy.update_state_tracking = update_state_tracking
    return agent


def serve(requests, answers, stock: bool) -> None:
    """Answer requests until their end."""
    games: dict[int, Game] = {}
    opened = 0
    for line in requests:
        request = json.loads(line)
        try:
            if request["do"] == "open":
                game, opened = Game(request["game"], request["expert"], request["seed"], stock), opened + 1
                games[opened] = game
                answer = {"id": opened, "text": game.text}
            elif request["do"] == "step":
                game = games[request["id"]]
                game.step(request["command"])
                answer = {"text": game.text, "won": game.won}
            elif request["do"] == "advise":
                answer = {"command": games[request["id"]].advise()}
            elif request["do"] == "commands":
                answer = {"commands": games[request["id"]].state["admissible_commands"]}
            else:
                games.pop(request["id"]).close()
                answer = {}
        except (Exception, SystemExit) as error:  # bad PDDL makes the translator exit; other games go on
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    ours = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the packages print is not an answer
    stock = "--stock" in sys.argv
    mend_templates()
    if not stock:
        cache_pure_work()
    serve(sys.stdin, ours, stock)
