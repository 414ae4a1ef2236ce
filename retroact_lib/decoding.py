"""Many conversations decoded at once, each keeping its KV cache between its requests.

An episode is written as a plain generator: it yields a `Request` ("read these tokens, then write until ..."), gets a
`Reply`, talks to its environment, and yields the next one. `decode` runs many such generators in a batch. Each row
keeps its own keys and values, so a new observation costs only its own tokens; a finished row makes room for a
waiting one; what a row writes depends on its own text and seed, not on its neighbours (float noise aside).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from retroact_lib.policy import Policy

Result = TypeVar("Result")


@dataclass
class Request:
    """Read `ids`, then write until `stop(text)`, an end token, or `max_new` tokens."""

    ids: list[int]
    """Tokens to read before writing: a whole prompt, or what came since this row's last reply."""
    role: str
    stop: Callable[[str], bool]
    max_new: int
    temperature: float
    """0 is greedy; log-probs are always those of temperature 1."""
    seed: int
    """Seed of this request's draws."""
    fresh: bool = False
    """True forgets what the row has read so far."""


@dataclass
class Reply:
    text: str
    ids: list[int]
    """Sampled token ids, an end token included."""
    logps: list[float]
    """Natural log-probs of `ids` at temperature 1, float32."""
    context: int
    """Tokens that the row now holds, `ids` included."""


@dataclass
class _Row:
    index: int
    episode: Generator
    request: Request | None = None
    cache: torch.Tensor | None = None  # [layers, 2, kv heads, tokens, head size]
    pending: list[int] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    draws: np.random.Generator | None = None
    done: bool = False

    @property
    def held(self) -> int:
        return 0 if self.cache is None else self.cache.shape[3]

    def ask(self, request: Request) -> None:
        if request.fresh:
            self.cache, self.pending = None, []
        self.request, self.pending = request, self.pending + list(request.ids)
        if not self.pending:
            raise ValueError("A request needs at least one token to read.")
        self.written, self.logps, self.done = [], [], False
        self.draws = np.random.default_rng(request.seed)


def decode(
    policy: Policy, episodes: Iterable[Generator[Request, Reply, Result]], rows: int = 16, read_tokens: int = 4096
) -> Iterator[tuple[int, Result]]:
    """Run the generators, at most `rows` at a time; yield (position in `episodes`, its return value) as each ends.

    `read_tokens` bounds the tokens of one reading pass, padding included.
    """
    if rows < 1:
        raise ValueError(f"rows is {rows}; expected at least 1.")
    waiting = deque(enumerate(episodes))
    active: list[_Row] = []
    while waiting or active:
        while waiting and len(active) < rows:
            index, episode = waiting.popleft()
            row = _Row(index, episode)
            try:
                row.ask(next(episode))
            except StopIteration as end:
                yield index, end.value
                continue
            active.append(row)
        with policy.decoding():
            for adapter in sorted({policy.adapter(r.request.role) for r in active}):
                policy.select(adapter)
                group = [r for r in active if policy.adapter(r.request.role) == adapter]
                for batch in _reading_batches([r for r in group if len(r.pending) > 1], read_tokens):
                    _advance(policy, batch, steps=1)
                _advance(policy, [r for r in group if not r.done], steps=64)
        for row in [r for r in active if r.done]:
            reply = Reply(policy.decode(row.written), row.written, row.logps, row.held + len(row.pending))
            try:
                row.ask(row.episode.send(reply))
            except StopIteration as end:
                active.remove(row)
                yield row.index, end.value


def _reading_batches(rows: list[_Row], read_tokens: int) -> Iterator[list[_Row]]:
    """Rows with like amounts to read together, no pass above `read_tokens` (a single row always goes)."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda r: len(r.pending)):
        if batch and (len(batch) + 1) * len(row.pending) > read_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _advance(policy: Policy, rows: list[_Row], steps: int) -> None:
    """Let `rows` read what they have pending and write up to `steps` tokens, or until half of them are done."""
    if not rows:
        return
    width = max(len(r.pending) for r in rows)
    cache, buffer, mask_BS = _join(policy, rows, width + steps)
    for _ in range(steps):
        width = max(len(r.pending) for r in rows)
        ids_BW = torch.zeros(len(rows), width, dtype=torch.long)
        real_BW = torch.zeros(len(rows), width, dtype=torch.long)
        for b, row in enumerate(rows):
            tokens = [] if row.done else row.pending
            ids_BW[b, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            real_BW[b, : len(tokens)] = 1
        position_BW = (mask_BS.sum(1, keepdim=True) + real_BW.cumsum(1) - 1).clamp(min=0)
        mask_BS = torch.cat([mask_BS, real_BW], dim=1)
        hidden_BWD = policy.body(
            input_ids=ids_BW.to(policy.device),
            attention_mask=mask_BS.to(policy.device),
            position_ids=position_BW.to(policy.device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        live = [b for b, row in enumerate(rows) if not row.done]
        last = torch.tensor([len(rows[b].pending) - 1 for b in live])
        logp_NV = torch.log_softmax(policy.logits(hidden_BWD[live, last]), dim=-1).cpu()
        for n, b in enumerate(live):
            _write(policy, rows[b], logp_NV[n])
        if 2 * sum(not r.done for r in rows) <= len(rows):
            break
    _split(rows, buffer, mask_BS)


def _write(policy: Policy, row: _Row, logp_V: torch.Tensor) -> None:
    """Draw the row's next token by inverse transform sampling, and see whether the row is done."""
    request = row.request
    if request.temperature > 0:
        weights = torch.softmax(logp_V.double() / request.temperature, dim=-1).cumsum(0)
        token = int(torch.searchsorted(weights, row.draws.random() * float(weights[-1]), right=True))
        token = min(token, len(weights) - 1)
    else:
        token = int(logp_V.argmax())
    row.pending = [token]
    row.written.append(token)
    row.logps.append(float(logp_V[token]))
    row.done = (
        token in policy.stop_ids or len(row.written) >= request.max_new or request.stop(policy.decode(row.written))
    )


class _BufferLayer(DynamicLayer):
    """One layer's keys and values in a buffer with room to grow, so that a new token copies only itself."""

    def __init__(self, buffer_KBHSD: torch.Tensor, length: int):
        super().__init__()
        self.buffer, self.is_initialized = buffer_KBHSD, True
        self._grow_to(length)

    def _grow_to(self, length: int) -> None:
        self.keys, self.values = self.buffer[:, :, :, :length].unbind(0)

    def update(self, key_states, value_states, *args, **kwargs):
        start = self.keys.shape[-2]
        stop = start + key_states.shape[-2]
        self.buffer[0, :, :, start:stop] = key_states
        self.buffer[1, :, :, start:stop] = value_states
        self._grow_to(stop)
        return self.keys, self.values


def _join(policy: Policy, rows: list[_Row], room: int) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
    """The rows' caches side by side, padded on the left, with `room` for more tokens.

    Returns the cache, the buffer [layers, 2, B, heads, S, size] behind it, and the mask [B, S] of held tokens.
    """
    config = policy.causal_lm.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    longest = max(r.held for r in rows)
    shape = (config.num_hidden_layers, 2, len(rows), config.num_key_value_heads, longest + room, size)
    buffer = torch.zeros(shape, dtype=policy.head.weight.dtype, device=policy.device)
    mask_BS = torch.zeros(len(rows), longest, dtype=torch.long)
    for b, row in enumerate(rows):
        if row.held:
            buffer[:, :, b, :, longest - row.held : longest] = row.cache
            mask_BS[b, longest - row.held :] = 1
    cache = DynamicCache()
    cache.layers = [_BufferLayer(layer, longest) for layer in buffer]
    return cache, buffer, mask_BS


def _split(rows: list[_Row], buffer: torch.Tensor, mask_BS: torch.Tensor) -> None:
    """Give every row its own part of the buffer back; a row's tokens are always one stretch of it."""
    for b, row in enumerate(rows):
        held = mask_BS[b].nonzero()[:, 0]
        row.cache = buffer[:, :, b, :, int(held[0]) : int(held[-1]) + 1].clone()
