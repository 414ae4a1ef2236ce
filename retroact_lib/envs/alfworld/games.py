"""Games in ALFWorld's own format: generated households, and the loader that they share with the official data.

A household furnishes one of the 120 AI2-THOR rooms whose layouts the alfworld package ships. The package's tables say
which things a room has, what may lie where, and what can be cleaned, heated or cooled; a seed decides how many of each
there are, where they lie, and what is to be done with them. The same seed gives the same game everywhere.

    <data>/json_2.1.1/{train,valid_seen,valid_unseen}/<type>-<object>-None-<place>-<room>/trial_<n>/
        traj_data.json   the task's type and parameters
        game.tw-pddl     the game: PDDL domain and problem, grammar, walkthrough
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path

from retroact_lib.envs.alfworld.engine import Engine, GameFailed, require_packages
from retroact_lib.progress import progress

GAME_FILE = "game.tw-pddl"
TASK_FILE = "traj_data.json"
TASK_TYPES = {
    "pick_and_place_simple": ("Kitchen", "LivingRoom", "Bedroom", "Bathroom"),
    "look_at_obj_in_light": ("LivingRoom", "Bedroom"),
    "pick_clean_then_place_in_recep": ("Kitchen", "Bathroom"),
    "pick_heat_then_place_in_recep": ("Kitchen",),
    "pick_cool_then_place_in_recep": ("Kitchen",),
    "pick_two_obj_and_place": ("Kitchen", "LivingRoom", "Bedroom", "Bathroom"),
}
"""Task type -> the types of room that it is set in, as in ALFRED."""

_STATE = {
    "pick_clean_then_place_in_recep": ("Cleanable", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("Heatable", "Microwave"),
    "pick_cool_then_place_in_recep": ("Coolable", "Fridge"),
}
"""Task type -> what its object must be, and the receptacle type that does it."""
_VERBS = {"SinkBasin": "clean", "Microwave": "heat", "Fridge": "cool"}
_LAMP = "DeskLamp"
_LAMP_STANDS = ("Desk", "SideTable", "Dresser", "CoffeeTable", "DiningTable", "Shelf")
_COUNTS = (1, 1, 1, 2, 2, 3)
"""How many things of one type there are, one of these at random."""


Placed = list[tuple[str, str, str]]
"""(PDDL name, object type, PDDL name of the receptacle) of every thing in a household."""


@dataclass(frozen=True)
class Room:
    """What a layout says. Receptacles are (PDDL name, receptacle type); objects are types that can be carried."""

    number: int
    receptacles: tuple[tuple[str, str], ...]
    objects: tuple[str, ...]
    lamp: bool

    @property
    def places(self) -> set[str]:
        return {rtype for _, rtype in self.receptacles}


@dataclass(frozen=True)
class Blueprint:
    """One game to be made. `place` is the receptacle type of the goal, or the lamp."""

    split: str
    task_type: str
    number: int
    room: int
    target: str
    place: str

    @property
    def folder(self) -> str:
        """The game's folder below the split's, named as ALFWorld names it."""
        return f"{self.task_type}-{self.target}-None-{self.place}-{self.room}/trial_{self.number:05d}"


def rooms(split: str) -> list[int]:
    """The floor plans of a split: of each type of room 1 to 6 are ``test``, 27 to 30 ``validation``, others ``train``.

    The first six are the test rooms of the package's tables. ``seen`` is set in the rooms of ``train``.
    """
    numbers = {"train": range(7, 27), "seen": range(7, 27), "validation": range(27, 31), "test": range(1, 7)}[split]
    return [first + number for first in (0, 200, 300, 400) for number in numbers]


def draw(split: str, task_type: str, number: int) -> Blueprint:
    """The game `number` of a task type in a split; depends on nothing but its arguments."""
    rng = random.Random(f"blueprint/{split}/{task_type}/{number}")
    chosen = rng.choice(_fitting(split, task_type))
    targets = _targets(room(chosen), task_type)
    target = rng.choice(sorted(targets))
    return Blueprint(split, task_type, number, chosen, target, rng.choice(targets[target]))


def make(blueprint: Blueprint, data: Path, engine: Engine) -> Path:
    """The game file of a blueprint below `data`; made, loaded and won once before it is used, unless it is there.

    The folder appears as a whole or not at all. Raises GameFailed if the household cannot be played to its end.
    """
    folder = data / blueprint.folder
    if (folder / GAME_FILE).is_file():
        return folder / GAME_FILE
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as draft:
        made = Path(draft) / folder.name
        made.mkdir()
        game, task = household(blueprint)
        (made / TASK_FILE).write_text(json.dumps(task, indent=1))
        (made / GAME_FILE).write_text(json.dumps(game))
        check(engine, made / GAME_FILE)
        try:
            made.replace(folder)
        except OSError:
            if not (folder / GAME_FILE).is_file():  # else another process was faster
                raise
    return folder / GAME_FILE


def check(engine: Engine, game: Path) -> None:
    """Play the game's walkthrough. Raises GameFailed unless its last command, and none before, wins."""
    play, wins = engine.open(game), []
    try:
        wins = [play.step(command)[1] for command in walkthrough(game)]
    finally:
        play.close()
    if wins != [False] * (len(wins) - 1) + [True]:
        raise GameFailed(f"{game} is not won by its walkthrough")


def walkthrough(game: Path) -> list[str]:
    """The commands that solve the game, as its file has them; none where it has none."""
    return list(_read(game).get("walkthrough") or [])


def collect(folder: Path) -> Iterator[tuple[Path, str, int]]:
    """(game file, task type, room) of every game below `folder` that ALFWorld would play, in order of their paths.

    Left out, as ALFWorld does: movable receptacles, slicing, other task types, games not marked as solvable.
    Raises ValueError naming the file that cannot be read.
    """
    for file in progress(sorted(folder.glob(f"*/*/{TASK_FILE}")), f"ALFWorld {folder.name}", "file"):
        game = file.with_name(GAME_FILE)
        if "movable" in str(file.parent) or "Sliced" in str(file.parent) or not game.is_file():
            continue
        task_type = _read(file).get("task_type")
        if task_type in TASK_TYPES and _read(game).get("solvable"):
            number = file.parent.parent.name.rsplit("-", 1)[-1]
            if not number.isdigit():
                raise ValueError(f"{file.parent.parent} should end in the number of a floor plan.")
            yield game, task_type, int(number)


def goal(game: Path) -> dict[str, str]:
    """The task's parameters as the game names things: ``target``, ``place`` (its receptacle) and ``lamp``."""
    given = _read(game.with_name(TASK_FILE)).get("pddl_params", {})
    names = {"target": "object_target", "place": "parent_target", "lamp": "toggle_target"}
    return {name: str(given.get(field, "")).lower() for name, field in names.items()}


def _read(file: Path) -> dict:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); delete its folder or fetch it again.") from None
    if not isinstance(data, dict):
        raise ValueError(f"{file} must hold a JSON object; delete its folder or fetch it again.")
    return data


# ------------------------------------------------------------------------------------------------------- the rooms


def accepts(place: str, thing: str) -> bool:
    """Whether a thing may be put into a receptacle, both by type in lower case."""
    return thing in _lower("VAL_RECEPTACLE_OBJECTS").get(place, ())


def affords(tool: str, thing: str) -> bool:
    """Whether a thing can be cleaned, heated or cooled with that tool, both by type in lower case."""
    needed = {place.lower(): able.lower() for able, place in _STATE.values()}[tool]
    return thing in _lower("VAL_ACTION_OBJECTS")[needed]


def has_door(place: str) -> bool:
    """Whether a receptacle, by type in lower case, is closed until it is opened."""
    return place in {rtype.lower() for rtype in _tables().OPENABLE_CLASS_SET}


@cache
def _lower(table: str) -> dict[str, set[str]]:
    return {key.lower(): {thing.lower() for thing in things} for key, things in getattr(_tables(), table).items()}


def _room_type(number: int) -> str:
    return {0: "Kitchen", 2: "LivingRoom", 3: "Bedroom", 4: "Bathroom"}[number // 100]


@lru_cache(maxsize=1)
def _tables():
    require_packages()
    return import_module("alfworld.gen.constants")


@cache
def room(number: int) -> Room:
    """A floor plan of the package: receptacles with a place to stand at, one of each other type that it lists."""
    tables, layouts = _tables(), files("alfworld") / "gen" / "layouts"
    placed = json.loads((layouts / f"FloorPlan{number}-openable.json").read_text())
    listed = set(json.loads((layouts / f"FloorPlan{number}-objects.json").read_text()))
    known = set(tables.VAL_RECEPTACLE_OBJECTS) - set(tables.MOVABLE_RECEPTACLES)
    receptacles = [(_pddl_name(name), _class(name)) for name in sorted(placed) if _class(name) in known]
    for rtype in sorted((listed & known) - {rtype for _, rtype in receptacles}):
        name = {"SinkBasin": "Sink|1|SinkBasin", "BathtubBasin": "Bathtub|1|BathtubBasin"}.get(rtype, f"{rtype}|1")
        receptacles.append((_pddl_name(name), rtype))
    things = [o for o in sorted(listed) if o in tables.OBJECTS and _where(o, {rtype for _, rtype in receptacles})]
    return Room(number, tuple(receptacles), tuple(things), _LAMP in listed)


@cache
def _fitting(split: str, task_type: str) -> list[int]:
    """The rooms of a split in which a task of this type can be set."""
    return [n for n in rooms(split) if _room_type(n) in TASK_TYPES[task_type] and _targets(room(n), task_type)]


def _class(name: str) -> str:
    """``Cabinet|+00.68|...`` is a Cabinet, ``Sink|...|SinkBasin`` a SinkBasin."""
    parts = name.split("|")
    return parts[-1] if parts[-1].endswith("Basin") else parts[0]


def _pddl_name(name: str) -> str:
    for sign, word in (("|", "_bar_"), ("-", "_minus_"), ("+", "_plus_"), (".", "_dot_")):
        name = name.replace(sign, word)
    return name


def _where(thing: str, places: set[str]) -> list[str]:
    """The receptacle types, of those given, in which a thing may lie."""
    return sorted(place for place in places if thing in _tables().VAL_RECEPTACLE_OBJECTS[place])


def _targets(here: Room, task_type: str) -> dict[str, list[str]]:
    """Object type -> the receptacle types that a task of this type may ask for in this room."""
    if task_type == "look_at_obj_in_light":
        stands = here.lamp and here.places & set(_LAMP_STANDS)
        return {thing: [_LAMP] for thing in here.objects} if stands else {}
    needed, tool = _STATE.get(task_type, ("", ""))
    if tool and tool not in here.places:
        return {}
    able = _tables().VAL_ACTION_OBJECTS[needed] if needed else here.objects
    found = {}
    for thing in here.objects:
        places = _where(thing, here.places)
        if thing in able and len(places) > 1 and (goals := [place for place in places if place != tool]):
            found[thing] = goals
    return found


# --------------------------------------------------------------------------------------------------- the household


def household(blueprint: Blueprint) -> tuple[dict, dict]:
    """Furnish a room: the contents of game.tw-pddl and of traj_data.json."""
    rng = random.Random(f"household/{blueprint}")
    goals = import_module("alfworld.gen.goal_library").gdict[blueprint.task_type]
    light = blueprint.task_type == "look_at_obj_in_light"
    words = {"obj": blueprint.target, "recep": "" if light else blueprint.place, "toggle": _LAMP if light else ""}
    sentence = rng.choice(goals["templates"]).format(**{k: v.lower() for k, v in words.items()}, mrecep="")
    data = files("alfworld") / "data"
    placed = _furnish(blueprint, room(blueprint.room), rng)
    game = {
        "pddl_domain": (data / "alfred.pddl").read_text(),
        "grammar": (data / "alfred.twl2").read_text().replace("UNKNOWN GOAL", sentence),
        "pddl_problem": _problem(blueprint, placed, goals["pddl"].format(**words, mrecep="").replace("#", "-")),
        "solvable": True,
        "walkthrough": _solution(blueprint, placed),
    }
    task = {
        "task_id": blueprint.folder.split("/")[1],
        "task_type": blueprint.task_type,
        "pddl_params": {
            "object_target": blueprint.target,
            "parent_target": words["recep"],
            "toggle_target": words["toggle"],
            "mrecep_target": "",
            "object_sliced": False,
        },
        "scene": {"floor_plan": f"FloorPlan{blueprint.room}", "scene_num": blueprint.room},
    }
    return game, task


def _solution(blueprint: Blueprint, placed: Placed) -> list[str]:
    """The commands of somebody who knows where everything lies."""
    here = room(blueprint.room)
    rtypes = dict(here.receptacles)
    shown = _shown([name for name, _ in here.receptacles] + [name for name, _, _ in placed])
    at, opened, commands = "", set(), []

    def go(receptacle: str, enter: bool = True) -> None:
        nonlocal at
        if at != receptacle:
            commands.append(f"go to {shown[receptacle]}")
        if enter and rtypes[receptacle] in _tables().OPENABLE_CLASS_SET and receptacle not in opened:
            commands.append(f"open {shown[receptacle]}")
            opened.add(receptacle)
        at = receptacle

    goal = next((name for name, rtype in here.receptacles if rtype == blueprint.place), "")
    tool = _STATE.get(blueprint.task_type, ("", ""))[1]
    wanted = [(name, place) for name, otype, place in placed if otype == blueprint.target]
    for name, place in wanted[: 2 if blueprint.task_type == "pick_two_obj_and_place" else 1]:
        go(place)
        commands.append(f"take {shown[name]} from {shown[place]}")
        if tool:
            user = next(name for name, rtype in here.receptacles if rtype == tool)
            go(user, enter=False)
            commands.append(f"{_VERBS[tool]} {shown[name]} with {shown[user]}")
        if goal:
            go(goal)
            commands.append(f"move {shown[name]} to {shown[goal]}")
        else:
            lamp, stand = next((name, place) for name, otype, place in placed if otype == _LAMP)
            go(stand, enter=False)
            commands.append(f"use {shown[lamp]}")
    return commands


def _shown(names: list[str]) -> dict[str, str]:
    """PDDL name -> the name in the game's texts: ``cabinet 2``, counted down in the names' order, as ALFWorld does."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=str.lower):
        noun = name.lower().split("_bar_")[0] + ("basin" if "basin" in name.lower() else "")
        groups.setdefault(noun, []).append(name)
    return {name: f"{noun} {len(group) - i}" for noun, group in groups.items() for i, name in enumerate(group)}


def _problem(blueprint: Blueprint, placed: Placed, goal: str) -> str:
    """The PDDL problem. `goal` closes the text, as the package's goals do."""
    tables, here = _tables(), room(blueprint.room)
    otypes = sorted({otype for _, otype, _ in placed})
    objects = ["agent1 - agent", "loc_bar_0 - location"]
    facts = ["(= (total-cost) 0)", "(atLocation agent1 loc_bar_0)"]
    for i, (name, rtype) in enumerate(here.receptacles, 1):
        objects += [f"{name} - receptacle", f"loc_bar_{i} - location"]
        facts += [f"(receptacleType {name} {rtype}Type)", f"(receptacleAtLocation {name} loc_bar_{i})"]
        facts += [f"(openable {name})"] if rtype in tables.OPENABLE_CLASS_SET else []
    location = {name: f"loc_bar_{i}" for i, (name, _) in enumerate(here.receptacles, 1)}
    for name, otype, receptacle in placed:
        objects.append(f"{name} - object")
        facts += [f"(objectType {name} {otype}Type)", f"(inReceptacle {name} {receptacle})"]
        facts += [f"(objectAtLocation {name} {location[receptacle]})"]
        facts.append(f"(toggleable {name})" if otype == _LAMP else f"(pickupable {name})")
        facts += [f"(isReceptacleObject {name})"] if otype in tables.MOVABLE_RECEPTACLES else []
        facts += [f"({able.lower()} {name})" for able, of in tables.VAL_ACTION_OBJECTS.items() if _can(able, otype, of)]
    for place in sorted(here.places):
        objects.append(f"{place}Type - rtype")
        facts += [f"(canContain {place}Type {otype}Type)" for otype in otypes if _where(otype, {place})]
    objects += [f"{otype}Type - otype" for otype in otypes]
    lines = "\n        ".join
    return (
        f"(define (problem household)\n    (:domain alfred)\n"
        f"    (:objects\n        {lines(objects)}\n    )\n    (:init\n        {lines(facts)}\n    )\n{goal}"
    )


def _can(able: str, otype: str, of: set[str]) -> bool:
    return able in ("Cleanable", "Heatable", "Coolable", "Sliceable") and otype in of


def _furnish(blueprint: Blueprint, here: Room, rng: random.Random) -> Placed:
    """Put every thing somewhere: into a type of receptacle at random, then into one of that type.

    The things that the task is about never lie where they are to be put.
    """
    placed = []
    for otype in here.objects:
        goal = blueprint.place if otype == blueprint.target else ""
        count = rng.choice((2, 3) if goal and blueprint.task_type == "pick_two_obj_and_place" else _COUNTS)
        for number in range(1, count + 1):
            place = rng.choice([place for place in _where(otype, here.places) if place != goal])
            placed.append((f"{otype}_bar_{number}", otype, _one(here, place, rng)))
    if here.lamp and (stands := [place for place in _LAMP_STANDS if place in here.places]):
        placed.append((f"{_LAMP}_bar_1", _LAMP, _one(here, rng.choice(stands), rng)))
    return placed


def _one(here: Room, place: str, rng: random.Random) -> str:
    return rng.choice([name for name, rtype in here.receptacles if rtype == place])
