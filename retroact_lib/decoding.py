"""Many conversations decoded at once, each keeping its KV cache between its requests.

An episode is written as a plain generator: it yields a `Request` ("read these tokens, then write until ..."), gets a
`Reply`, talks to its environment, and yields the next one. `decode` runs many such generators in a batch. Each slot
keeps its own keys and values, so a new observation costs only its own tokens, and a new prompt only what follows its
first difference from the text before; what the first prompts have in common is read once for all of them. An episode
that ends leaves its slot to a waiting one. The text of an episode depends on its own prompt and seed, not on its
neighbours (float noise aside).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from retroact_lib.attention import Kernel, visible
from retroact_lib.policy import Policy

Result = TypeVar("Result")


@dataclass
class Request:
    """Read `ids`, then write until `stop(text)`, an end token, or `max_new` tokens."""

    ids: list[int]
    """Tokens to read before writing: a whole prompt, or what came since this slot's last reply."""
    role: str
    stop: Callable[[str], bool]
    max_new: int
    temperature: float
    """0 is greedy; log-probs are always those of temperature 1."""
    seed: int
    """Seed of this request's draws."""
    fresh: bool = False
    """True begins a new text; otherwise `ids` follow what the slot has read and written so far."""


@dataclass
class Reply:
    text: str
    ids: list[int]
    """Sampled token ids, an end token included."""
    logps: list[float] | None
    """Natural log-probs of `ids` at temperature 1, float32; None where the engine does not say."""
    context: int
    """Tokens that the slot now holds, `ids` included."""


@dataclass
class _Slot:
    index: int
    episode: Generator | None
    request: Request | None = None
    adapter: str = ""
    held: list[int] = field(default_factory=list)  # tokens whose keys and values are in the cache
    pending: list[int] = field(default_factory=list)  # tokens still to be read
    written: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    draws: np.random.Generator | None = None
    done: bool = True

    @property
    def position(self) -> int:
        """Where the next token that it reads belongs."""
        return len(self.held)

    def ask(self, request: Request, adapter: str) -> None:
        if not request.ids:
            raise ValueError("A request needs at least one token to read.")
        text = list(request.ids) if request.fresh else self.held + self.pending + list(request.ids)
        known = _common_prefix(self.held, text) if adapter == self.adapter else 0
        known = min(known, len(text) - 1)  # the first draw needs a token that is read now
        self.request, self.adapter, self.held, self.pending = request, adapter, text[:known], text[known:]
        self.written, self.logps, self.done = [], [], False
        self.draws = np.random.default_rng(request.seed)

    def take(self, policy: Policy, token: int, logp: float) -> None:
        """Write a token, and see whether the request is answered."""
        self.held += self.pending
        self.pending = [token]
        self.written.append(token)
        self.logps.append(logp)
        self.done = (
            token in policy.stop_ids
            or len(self.written) >= self.request.max_new
            or self.request.stop(policy.decode(self.written))
        )


def _common_prefix(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def decode(
    policy: Policy,
    episodes: Iterable[Generator[Request, Reply, Result]],
    num_parallel: int = 16,
    read_tokens: int = 4096,
) -> Iterator[tuple[int, Result]]:
    """Run the generators, `num_parallel` at a time; yield (position in `episodes`, its return value) as each ends.

    `read_tokens` bounds the tokens of one reading pass, padding included.
    """
    if num_parallel < 1:
        raise ValueError(f"num_parallel is {num_parallel}; expected at least 1.")
    waiting = deque(enumerate(episodes))
    active = [_Slot(*waiting.popleft()) for _ in range(min(num_parallel, len(waiting)))]
    cache = _SlotCache(policy, places=len(active))
    while active:
        for slot in active:
            if slot.done:
                yield from _answer(policy, slot, waiting)
        for place in reversed(range(len(active))):
            if active[place].episode is None:
                cache.move(len(active) - 1, place)
                active[place] = active[-1]
                active.pop()
        for adapter in sorted({slot.adapter for slot in active}):
            group = {place: slot for place, slot in enumerate(active) if slot.adapter == adapter}
            with policy.decoding(adapter):
                reading = {place: slot for place, slot in group.items() if len(slot.pending) > 1}
                _share_beginning(policy, cache, reading)
                for batch in _reading_batches(reading, read_tokens):
                    _advance(policy, cache, batch)
                writing = {place: slot for place, slot in group.items() if not slot.done}
                while 4 * sum(slot.done for slot in writing.values()) < len(writing):
                    _advance(policy, cache, writing, policy.tokens_between_looks)


def _answer(policy: Policy, slot: _Slot, waiting: deque) -> Iterator[tuple[int, Result]]:
    """Hand a slot its reply; one whose episode ends goes on with a waiting episode, or with none."""
    reply = None
    if slot.request:
        context = len(slot.held) + len(slot.pending)
        reply = Reply(policy.decode(slot.written), slot.written, slot.logps, context)
    while slot.episode is not None:
        try:
            request = slot.episode.send(reply)
        except StopIteration as end:
            yield slot.index, end.value
            slot.index, slot.episode = waiting.popleft() if waiting else (-1, None)
            reply = None
        else:
            slot.ask(request, policy.adapter(request.role))
            break


_SPARE = 32
"""Tokens of padding that cost less than one more pass."""


def _reading_batches(slots: dict[int, _Slot], read_tokens: int) -> Iterator[dict[int, _Slot]]:
    """Slots with like amounts to read together: little padding, no pass above `read_tokens` (but for a single slot)."""
    batch: dict[int, _Slot] = {}
    for place, slot in sorted(slots.items(), key=lambda item: len(item[1].pending)):
        padded = (len(batch) + 1) * len(slot.pending)
        real = sum(len(r.pending) for r in batch.values()) + len(slot.pending)
        if batch and (padded > read_tokens or padded - real > _SPARE + real // 8):
            yield batch
            batch = {}
        batch[place] = slot
    if batch:
        yield batch


def _share_beginning(policy: Policy, cache: _SlotCache, reading: dict[int, _Slot]) -> None:
    """Where several slots begin from nothing, let the first read its prompt, and the others copy what is the same."""
    new = {place: slot for place, slot in reading.items() if not slot.held}
    if len(new) < 2:
        return
    (leader, first), *others = new.items()
    _advance(policy, cache, {leader: first})
    reading.pop(leader)
    for place, slot in others:
        known = min(_common_prefix(first.held, slot.pending), len(slot.pending) - 1)
        cache.copy(leader, place, known)
        slot.held, slot.pending = slot.pending[:known], slot.pending[known:]


def _advance(policy: Policy, cache: _SlotCache, slots: dict[int, _Slot], count: int = 1) -> None:
    """Let `slots`, by their places in the cache, read what they have pending and write `count` tokens.

    Texts to read end together: a shorter one begins with its first token several times, at the same position, which
    writes the same keys and values again. Slots that are done take part without effect: what they leave in the cache
    lies behind their text. What is written after a slot is done is dropped.
    """
    width = max(1 if slot.done else len(slot.pending) for slot in slots.values())
    ids, positions = [], []
    for slot in slots.values():
        pending = [0] if slot.done else slot.pending
        spare = width - len(pending)
        ids.append(pending[:1] * spare + pending)
        positions.append([slot.position] * spare + list(range(slot.position, slot.position + len(pending))))
    ids_BW = torch.tensor(ids, device=policy.device)
    position_BW = torch.tensor(positions, device=policy.device)
    length = 1 + max(row[-1] for row in positions)
    draw = _Sampler(list(slots.values()), count, policy.device)
    written = []
    for step in range(count):
        layout = cache.prepare(list(slots), position_BW, length + step)
        token_B, logp_B = draw(policy.logits(ids_BW, position_BW, layout, cache)[:, -1], step)
        written.append(torch.stack([token_B.double(), logp_B.double()]))
        ids_BW, position_BW = token_B[:, None], position_BW[:, -1:] + 1
    for tokens, logps in torch.stack(written).tolist():  # the one wait for the device
        for slot, token, logp in zip(slots.values(), tokens, logps, strict=True):
            if not slot.done:
                slot.take(policy, int(token), logp)


class _Sampler:
    """Draws the next token of each slot by inverse transform sampling, with the slot's own random numbers."""

    def __init__(self, slots: list[_Slot], count: int, device: torch.device):
        temperatures = [0.0 if slot.done else slot.request.temperature for slot in slots]
        self.warm = any(temperatures)
        self.temperature_B1 = torch.tensor(temperatures, device=device)[:, None]
        draws = [[0.0] * count if slot.done or not self.warm else slot.draws.random(count).tolist() for slot in slots]
        self.draw_BC = torch.tensor(draws, dtype=torch.float64, device=device)

    def __call__(self, logits_BV: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [B] and their natural log-probs at temperature 1 [B], for float32 logits."""
        token_B = logits_BV.argmax(-1)
        if self.warm:
            mass_BV = torch.softmax(logits_BV / self.temperature_B1.clamp(min=1e-6), dim=-1)
            drawn_B = _inverse(mass_BV, self.draw_BC[:, step])
            token_B = torch.where(self.temperature_B1[:, 0] > 0, drawn_B, token_B)
        return token_B, logits_BV.gather(1, token_B[:, None])[:, 0] - logits_BV.logsumexp(-1)


def _inverse(mass_BV: torch.Tensor, draw_B: torch.Tensor, block: int = 256) -> torch.Tensor:
    """For each row the first place at which the sum of its masses exceeds `draw` times their total; `draw` in [0, 1).

    Summed in float64, block by block first, which is far less to sum than token by token.
    """
    size = mass_BV.shape[1]
    mass_BNM = torch.nn.functional.pad(mass_BV, (0, -size % block)).unflatten(1, (-1, block))
    before_BN = mass_BNM.sum(-1, dtype=torch.float64).cumsum(-1)
    wanted_B1 = draw_B[:, None] * before_BN[:, -1:]
    block_B = torch.searchsorted(before_BN, wanted_B1, right=True)[:, 0].clamp(max=before_BN.shape[1] - 1)
    row_B = torch.arange(len(mass_BV), device=mass_BV.device)
    begin_B1 = torch.where(block_B > 0, before_BN[row_B, block_B - 1], 0)[:, None]
    within_BM = mass_BNM[row_B, block_B].cumsum(-1, dtype=torch.float64)
    place_B = torch.searchsorted(within_BM, wanted_B1 - begin_B1, right=True)[:, 0].clamp(max=block - 1)
    return (block_B * block + place_B).clamp(max=size - 1)


class _SlotCache(Cache):
    """Keys and values of all slots: a slot's token at position t lies at t of the slot's place, and is copied once."""

    def __init__(self, policy: Policy, places: int):
        layers = policy.causal_lm.config.get_text_config().num_hidden_layers
        super().__init__(layers=[_SlotLayer(places, policy.compute_dtype) for _ in range(layers)])
        self.device = policy.device

    def prepare(self, places: list[int], position_BW: torch.Tensor, length: int) -> _Pass:
        """Say which slots the next pass is for and where its tokens go, all before `length`."""
        whole = places == list(range(len(places)))
        now = _Pass(torch.tensor(places, device=self.device), position_BW, length, whole)
        for layer in self.layers:
            layer.now = now
        return now

    def move(self, source: int, target: int) -> None:
        """Copy a slot to another place."""
        self.copy(source, target, self.layers[0].capacity)

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a slot to another place."""
        for layer in self.layers:
            for store_PGSD in (layer.keys, layer.values):
                if store_PGSD is not None:
                    store_PGSD[target, :, :length] = store_PGSD[source, :, :length]


@dataclass(frozen=True)
class _Pass:
    """One pass over some slots, and the layout of its attention: a query sees its slot up to its own position."""

    place_B: torch.Tensor
    position_BW: torch.Tensor
    length: int  # positions that the pass may look at
    whole: bool  # the places are 0, 1, ...: they can be looked at without a copy
    masks: dict[tuple, torch.Tensor] = field(default_factory=dict)

    def attend(self, kernel: Kernel, query_BHWD, key_BGSD, value_BGSD):
        name = (kernel.window, query_BHWD.dtype, query_BHWD.shape[1] // key_BGSD.shape[1])
        if name not in self.masks:
            key_S = torch.arange(self.length, device=self.position_BW.device)
            self.masks[name] = visible(self.position_BW, key_S, *name)
        writing = self.position_BW.shape[1] == 1 and query_BHWD.device.type == "cpu"
        attend = kernel.by_products if writing else kernel
        return attend(query_BHWD, key_BGSD, value_BGSD, self.masks[name])


class _SlotLayer(DynamicLayer):
    """One layer's keys and values, [places, heads, positions, size] each, in the data type of the products."""

    now: _Pass

    def __init__(self, places: int, dtype: torch.dtype):
        super().__init__()
        self.places, self.dtype = places, dtype

    @property
    def capacity(self) -> int:
        """Positions that there is memory for."""
        return 0 if self.keys is None else self.keys.shape[2]

    def update(self, key_BGWD: torch.Tensor, value_BGWD: torch.Tensor, *args, **kwargs):
        self.keys, self.values = self._put(self.keys, key_BGWD), self._put(self.values, value_BGWD)
        return self._get(self.keys), self._get(self.values)

    def _put(self, store_PGSD: torch.Tensor | None, new_BGWD: torch.Tensor) -> torch.Tensor:
        held = 0 if store_PGSD is None else store_PGSD.shape[2]
        if self.now.length > held:  # grows in large steps: touching new memory is slow
            _, groups, _, size = new_BGWD.shape
            capacity = -(-self.now.length // 256) * 256
            grown_PGSD = new_BGWD.new_zeros(self.places, groups, capacity, size, dtype=self.dtype)
            if store_PGSD is not None:
                grown_PGSD[:, :, :held] = store_PGSD
            store_PGSD = grown_PGSD
        store_PGSD[self.now.place_B[:, None], :, self.now.position_BW] = new_BGWD.transpose(1, 2).to(self.dtype)
        return store_PGSD

    def _get(self, store_PGSD: torch.Tensor) -> torch.Tensor:
        held_PGSD = store_PGSD[:, :, : self.now.length]
        return held_PGSD[: len(self.now.place_B)] if self.now.whole else held_PGSD[self.now.place_B]
