"""Many ALFWorld games at once, played by worker processes that may die.

A game is deterministic, so what a dead worker held is opened again in the next one and its commands are repeated: a
death costs that time and no episode. Workers are replaced after `games_per_worker` games, because the packages
were not made for a life of thousands.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import warnings
import weakref
from pathlib import Path
from typing import BinaryIO

ANSWER_SECONDS, PLANNER_SECONDS = 120.0, 1800.0
"""A worker that takes longer for one answer is taken for dead; with the planner at a game's side it may search."""
DEATHS = 2
"""After so many workers have died of the same command, the game itself is to blame."""
INHERITED = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "PYTHONPATH", "LD_LIBRARY_PATH", "ALFWORLD_DATA")
"""Environment variables that a worker gets: games come from others, and keys are none of their business."""
_PUT = re.compile(r"(?:put|move|place) (.+?) (?:in/on|into|onto|in|on|to) (.+)")


class WorkerDied(RuntimeError):
    """The worker process ended, or did not answer in time."""


def as_command(action: str) -> str:
    """What an agent wrote as the game wants it: in lower case, without marks around it, in the present wording."""
    command = " ".join(action.lower().split()).strip(" .\"'`")
    put = _PUT.fullmatch(command)
    return f"move {put[1]} to {put[2]}" if put else command


class GameFailed(RuntimeError):
    """The game cannot be played: it does not load, or kills its workers."""


def require_packages() -> None:
    """Raises ModuleNotFoundError with the remedy where ALFWorld or TextWorld's planner is not installed."""
    for name in ("alfworld", "textworld", "fast_downward"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"ALFWorld needs the package {name}: run `pip install -e .[alfworld]` (it compiles; gcc, g++ and make "
                "must be there)."
            )


class Worker:
    """One process of `worker`. `stock` leaves the packages as they are, without any cache."""

    def __init__(self, stock: bool = False) -> None:
        command = [sys.executable, "-m", "retroact_lib.envs.alfworld.worker", *(["--stock"] if stock else [])]
        self._log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
            env={name: os.environ[name] for name in INHERITED if name in os.environ} | {"PYTHONHASHSEED": "0"},
        )
        self.stop = weakref.finalize(self, _end, self.process, self._log)
        """Ends the process; so does the end of the program."""
        self.opened = 0
        self.open = 0
        """Games opened so far, and open now."""
        self._buffer = b""

    def ask(self, seconds: float, **request) -> dict:
        """One answer. Raises WorkerDied, or GameFailed with the worker's own words."""
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            answer = json.loads(self._line(seconds))
        except OSError:
            raise self._ended() from None
        except BaseException:  # interrupted between question and answer: the next answer would be a stale one
            self.process.kill()
            self.process.wait()
            raise
        if "error" in answer:
            raise GameFailed(answer["error"])
        return answer

    def _line(self, seconds: float) -> bytes:
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self.process.stdout], [], [], seconds)
            if not ready:
                raise WorkerDied(f"the game process gave no answer for {seconds:.0f} seconds")
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                raise self._ended()
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _ended(self) -> WorkerDied:
        """Its exit code, and its last words."""
        code = self.process.wait()
        self._log.seek(0)
        words = self._log.read().decode(errors="replace").strip().splitlines()
        return WorkerDied(f"the game process ended with code {code}" + (f", {words[-1]}" if words else ""))


def _end(process: subprocess.Popen, log: BinaryIO) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, log):
        stream.close()


class Engine:
    """Opens games; keeps one worker for new ones and, until their last game closes, the workers before it.

    Each game that is open at a time takes 33 MB of the folder for temporary files: its copy of the planner library.
    """

    def __init__(self, games_per_worker: int = 300, stock: bool = False) -> None:
        if games_per_worker < 1:
            raise ValueError(f"games_per_worker must be at least 1, not {games_per_worker}.")
        require_packages()
        self.games_per_worker, self.stock = games_per_worker, stock
        self._worker: Worker | None = None

    def open(self, game: Path | str, expert: str | None = None, seed: int = 0) -> Play:
        """Start the game in the file `game` (``game.tw-pddl``), with an expert at its side if one is named.

        Raises GameFailed if it cannot be loaded. The planner searches blindly, which may take long in a large room.
        """
        return Play(self, str(game), expert, seed)

    def worker(self) -> Worker:
        """The worker that opens the next game."""
        worker = self._worker
        if worker is None or worker.opened >= self.games_per_worker or worker.process.poll() is not None:
            self.close()
            self._worker = worker = Worker(self.stock)
        return worker

    def close(self) -> None:
        """Let go of the present worker; it stops with its last game."""
        if self._worker is not None and not self._worker.open:
            self._worker.stop()
        self._worker = None

    def release(self, worker: Worker) -> None:
        """A game of `worker` was closed."""
        worker.open -= 1
        if worker is not self._worker and not worker.open:
            worker.stop()


class Play:
    """One game being played. `intro` is the game's first text."""

    def __init__(self, engine: Engine, game: str, expert: str | None, seed: int) -> None:
        self._engine, self._game, self._expert, self._seed = engine, game, expert, seed
        self._seconds = PLANNER_SECONDS if expert == "planner" else ANSWER_SECONDS
        self._past: list[dict] = []
        """What was asked so far and changed the game or its expert."""
        self._worker: Worker | None = None
        self._closed = False
        self.intro = self._ask(None)["text"]

    def step(self, command: str) -> tuple[str, bool]:
        """(observation, whether the game is won). A command that the game does not know changes nothing."""
        answer = self._ask({"do": "step", "command": command}, lasting=True)
        return answer["text"], answer["won"]

    def advise(self) -> str | None:
        """The expert's next command; None when it knows none."""
        return self._ask({"do": "advise"}, lasting=True)["command"]

    def commands(self) -> list[str]:
        """All commands that do something now, sorted."""
        return self._ask({"do": "commands"})["commands"]

    def close(self) -> None:
        """Give the game back; what is asked afterwards raises GameFailed."""
        worker, self._worker, self._closed = self._worker, None, True
        if worker is not None:
            try:
                worker.ask(self._seconds, do="close", id=self._id)
            except (WorkerDied, GameFailed):
                pass
            self._engine.release(worker)

    def _ask(self, request: dict | None, lasting: bool = False) -> dict:
        """An answer about this game, from a new worker after a death. None opens the game."""
        if self._closed:
            raise GameFailed(f"{self._game} was closed")
        for death in range(1, DEATHS + 1):
            try:
                opened = self._reopen() if self._worker is None else {}
                if request is None:
                    return opened
                answer = self._worker.ask(self._seconds, id=self._id, **request)
                self._past += [request] if lasting else []
                return answer
            except WorkerDied as error:
                if self._worker is not None:
                    self._engine.release(self._worker)
                    self._worker = None
                if death == DEATHS:
                    raise GameFailed(f"{self._game}: {error}, {DEATHS} times at {request or 'its start'}") from None
                warnings.warn(f"A game process died ({error}); its games are repeated in a new one.", stacklevel=4)

    def _reopen(self) -> dict:
        """Open the game in the engine's present worker and repeat what was asked so far."""
        worker = self._engine.worker()
        worker.opened += 1
        answer = worker.ask(self._seconds, do="open", game=self._game, expert=self._expert, seed=self._seed)
        worker.open += 1
        self._worker, self._id = worker, answer["id"]
        for request in self._past:
            worker.ask(self._seconds, id=self._id, **request)
        return answer
