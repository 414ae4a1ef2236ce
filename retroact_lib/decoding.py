"""Many conversations decoded at once, each keeping its KV cache between its requests.

An episode is written as a plain generator: it yields a `Request` ("read these tokens, then write until ..."), gets a
`Reply`, talks to its environment, and yields the next one. `decode` runs many such generators in a batch. Each slot
keeps its own keys and values, so a new observation costs only its own tokens, and a new prompt only what follows its
first difference from the text before. An episode that ends leaves its slot to a waiting one. The text of an episode
depends on its own prompt and seed, not on its neighbours (float noise aside).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

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
    logps: list[float]
    """Natural log-probs of `ids` at temperature 1, float32."""
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

    def ask(self, request: Request, adapter: str) -> None:
        if not request.ids:
            raise ValueError("A request needs at least one token to read.")
        text = list(request.ids) if request.fresh else self.held + self.pending + list(request.ids)
        known = _common_prefix(self.held, text) if adapter == self.adapter else 0
        known = min(known, len(text) - 1)  # the first draw needs a token that is read now
        self.request, self.adapter, self.held, self.pending = request, adapter, text[:known], text[known:]
        self.written, self.logps, self.done = [], [], False
        self.draws = np.random.default_rng(request.seed)


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
                for batch in _reading_batches(reading, read_tokens):
                    _advance(policy, cache, batch)
                writing = {place: slot for place, slot in group.items() if not slot.done}
                while 4 * sum(slot.done for slot in writing.values()) < len(writing):
                    _advance(policy, cache, writing)


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


def _advance(policy: Policy, cache: _SlotCache, slots: dict[int, _Slot]) -> None:
    """Let `slots`, by their places in the cache, read what they have pending and write one token.

    Slots that are done take part without effect: what they leave in the cache lies behind their text.
    """
    width = max(1 if slot.done else len(slot.pending) for slot in slots.values())
    ids_BW = torch.zeros(len(slots), width, dtype=torch.long)
    for b, slot in enumerate(slots.values()):
        if not slot.done:
            ids_BW[b, : len(slot.pending)] = torch.tensor(slot.pending)
    start_B = torch.tensor([len(slot.held) for slot in slots.values()])
    position_BW = start_B[:, None] + torch.arange(width)
    hidden_BWD = policy.body(
        input_ids=ids_BW.to(policy.device),
        position_ids=position_BW.to(policy.device),
        attention_mask=cache.prepare(list(slots), position_BW),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    live = [(b, slot) for b, slot in enumerate(slots.values()) if not slot.done]
    last = [len(slot.pending) - 1 for _, slot in live]
    logits_NV = policy.logits(hidden_BWD[[b for b, _ in live], last])
    _write(policy, [slot for _, slot in live], logits_NV)


def _write(policy: Policy, slots: list[_Slot], logits_NV: torch.Tensor) -> None:
    """Draw each slot's next token by inverse transform sampling, and see which slots are done."""
    temperature_N = torch.tensor([slot.request.temperature for slot in slots], device=logits_NV.device)
    draw_N = torch.tensor([slot.draws.random() for slot in slots], dtype=torch.float64, device=logits_NV.device)
    logp_NV = torch.log_softmax(logits_NV, dim=-1)
    token_N = logits_NV.argmax(-1)
    if (temperature_N > 0).any():
        sharp_NV = logits_NV / temperature_N.clamp(min=1e-6)[:, None]
        mass_NV = torch.softmax(sharp_NV, dim=-1).cumsum(-1, dtype=torch.float64)
        drawn_N = torch.searchsorted(mass_NV, draw_N[:, None] * mass_NV[:, -1:], right=True)[:, 0]
        token_N = torch.where(temperature_N > 0, drawn_N.clamp(max=logits_NV.shape[-1] - 1), token_N)
    logp_N = logp_NV.gather(1, token_N[:, None])[:, 0]
    for slot, token, logp in zip(slots, token_N.tolist(), logp_N.tolist(), strict=True):
        slot.held += slot.pending
        slot.pending = [token]
        slot.written.append(token)
        slot.logps.append(logp)
        slot.done = (
            token in policy.stop_ids
            or len(slot.written) >= slot.request.max_new
            or slot.request.stop(policy.decode(slot.written))
        )


class _SlotCache(Cache):
    """Keys and values of all slots: a slot's token at position t lies at t of the slot's place, and is copied once."""

    def __init__(self, policy: Policy, places: int):
        layers = policy.causal_lm.config.get_text_config().num_hidden_layers
        super().__init__(layers=[_SlotLayer(places) for _ in range(layers)])
        self.dtype, self.device = policy.head.weight.dtype, policy.device

    def prepare(self, places: list[int], position_BW: torch.Tensor) -> torch.Tensor:
        """Say which slots the next pass is for and where its tokens go; returns its mask [B, 1, W, S], 0 or lowest."""
        length = int(position_BW.max()) + 1
        whole = places == list(range(len(places)))
        now = _Pass(torch.tensor(places, device=self.device), position_BW.to(self.device), length, whole)
        for layer in self.layers:
            layer.now = now
        unseen_BWS = torch.arange(length) > position_BW[:, :, None]
        mask_BWS = torch.zeros(unseen_BWS.shape, dtype=self.dtype).masked_fill(unseen_BWS, torch.finfo(self.dtype).min)
        return mask_BWS[:, None].to(self.device)

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Copy a slot to another place."""
        for layer in self.layers:
            for store_PHSD in (layer.keys, layer.values):
                if store_PHSD is not None:
                    store_PHSD[target] = store_PHSD[source]


@dataclass(frozen=True)
class _Pass:
    place_B: torch.Tensor
    position_BW: torch.Tensor
    length: int  # positions that the pass may look at
    whole: bool  # the places are 0, 1, ...: they can be looked at without a copy


class _SlotLayer(DynamicLayer):
    """One layer's keys and values, [places, heads, positions, size] each."""

    now: _Pass

    def __init__(self, places: int):
        super().__init__()
        self.places = places

    def update(self, key_BHWD: torch.Tensor, value_BHWD: torch.Tensor, *args, **kwargs):
        self.keys = self._put(self.keys, key_BHWD)
        self.values = self._put(self.values, value_BHWD)
        return self._get(self.keys), self._get(self.values)

    def _put(self, store_PHSD: torch.Tensor | None, new_BHWD: torch.Tensor) -> torch.Tensor:
        held = 0 if store_PHSD is None else store_PHSD.shape[2]
        if self.now.length > held:  # grows in large steps: touching new memory is slow
            capacity = -(-self.now.length // 256) * 256
            grown_PHSD = new_BHWD.new_zeros(self.places, new_BHWD.shape[1], capacity, new_BHWD.shape[3])
            if store_PHSD is not None:
                grown_PHSD[:, :, :held] = store_PHSD
            store_PHSD = grown_PHSD
        store_PHSD[self.now.place_B[:, None], :, self.now.position_BW] = new_BHWD.transpose(1, 2)
        return store_PHSD

    def _get(self, store_PHSD: torch.Tensor) -> torch.Tensor:
        held_PHSD = store_PHSD[:, :, : self.now.length]
        return held_PHSD[: len(self.now.place_B)] if self.now.whole else held_PHSD[self.now.place_B]
