"""Who decodes the episodes: our own slots, or transformers' continuous batching.

An engine takes the generators that `decoding.decode` takes, and gives what it gives. Training scores the text again by
its own kernel whatever the engine, so only the text has to come from here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from retroact_lib import decoding
from retroact_lib.config import RolloutConfig
from retroact_lib.decoding import Reply, Request, Result
from retroact_lib.policy import Policy

Episodes = Iterable[Generator[Request, Reply, Result]]
PAGE = 256
"""Tokens of a page of transformers' cache."""


def native(policy: Policy, episodes: Episodes, how: RolloutConfig) -> Iterator[tuple[int, Result]]:
    """Our own slots: see `decoding`."""
    return decoding.decode(policy, episodes, how.num_parallel)


def continuous(policy: Policy, episodes: Episodes, how: RolloutConfig) -> Iterator[tuple[int, Result]]:
    """transformers' continuous batching, which reads a text again at every request.

    Greedy text is that of `native`, float noise aside. Draws are not those of `Request.seed`: they depend on what is
    decoded together, so sampled episodes cannot be repeated. Replies have no log-probs. The policy is in use until the
    last episode has ended. Raises RuntimeError when transformers gives up a request.
    """
    waiting = deque(_Talk(index, episode) for index, episode in enumerate(episodes))
    talks: list[_Talk] = []
    with ExitStack() as open_server:
        server = None
        while waiting or talks:
            while waiting and len(talks) < how.num_parallel:
                talks.append(waiting.popleft())
                talks[-1].go_on(None)
            yield from ((talk.index, talk.result) for talk in talks if talk.over)
            talks = [talk for talk in talks if not talk.over]
            kinds = [talk.kind(policy) for talk in talks]
            if server is None or server.kind not in kinds:
                open_server.close()
                server = open_server.enter_context(_serving(policy, *kinds[0], how)) if kinds else None
            if server:
                for talk, kind in zip(talks, kinds, strict=True):
                    if kind == server.kind and talk not in server.asked.values():
                        server.ask(talk)
                talk, reply = server.answer()
                talk.go_on(reply)


class _Talk:
    """An episode, the request that it waits for, and its text up to there."""

    def __init__(self, index: int, episode: Generator):
        self.index, self.episode = index, episode
        self.request: Request | None = None
        self.text: list[int] = []
        self.over, self.result = False, None

    def go_on(self, reply: Reply | None) -> None:
        """Hand the episode a reply, and take its next request or its result."""
        written = reply.ids if reply else []
        try:
            self.request = self.episode.send(reply)
        except StopIteration as end:
            self.over, self.result = True, end.value
        else:
            self.text = list(self.request.ids) if self.request.fresh else self.text + written + list(self.request.ids)
            self.checked = 0  # tokens of the answer that do not end it

    def kind(self, policy: Policy) -> tuple[str, float]:
        """What can be decoded together: the requests to an adapter at a temperature."""
        return policy.adapter(self.request.role), self.request.temperature


class _Server:
    """A running manager of transformers, and the requests that it works on."""

    def __init__(self, policy: Policy, kind: tuple[str, float], manager):
        self.policy, self.kind, self.manager = policy, kind, manager
        self.asked: dict[str, _Talk] = {}

    def ask(self, talk: _Talk) -> None:
        name = self.manager.add_request(talk.text, max_new_tokens=talk.request.max_new, streaming=True)
        self.asked[name] = talk

    def answer(self) -> tuple[_Talk, Reply]:
        """Wait for the next request that is answered. It may be answered before transformers knows."""
        while True:
            output = self.manager.get_result(timeout=1)
            if output is None:
                if not self.manager.is_running():
                    raise RuntimeError("transformers' continuous batching has stopped; its log says why.")
                continue
            talk = self.asked.get(output.request_id)
            if talk is None:
                continue  # an echo of a request that was cancelled
            if output.error:
                raise RuntimeError(f"transformers' continuous batching gave up a request: {output.error}")
            for count in range(talk.checked + 1, len(output.generated_tokens) + 1):
                written = output.generated_tokens[:count]
                if self._ends(talk.request, written):
                    del self.asked[output.request_id]
                    if not output.is_finished():
                        self.manager.cancel_request(output.request_id)
                    return talk, Reply(self.policy.decode(written), written, None, len(talk.text) + count)
            talk.checked = len(output.generated_tokens)

    def _ends(self, request: Request, written: list[int]) -> bool:
        ended = written[-1] in self.policy.stop_ids or len(written) >= request.max_new
        return ended or request.stop(self.policy.decode(written))


@contextmanager
def _serving(policy: Policy, adapter: str, temperature: float, how: RolloutConfig) -> Iterator[_Server]:
    """Inside, transformers decodes in the background, in the adapter's dense weights where they fit."""
    draws = dict(do_sample=True, temperature=temperature, top_k=0, top_p=1.0) if temperature else dict(do_sample=False)
    pages = how.num_parallel * -(-(how.max_context + PAGE) // PAGE)
    batching = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=pages,
        max_requests_per_batch=how.num_parallel,
        max_batch_tokens=1024,  # its mask has a row for each of them and a column for each token of the pages
        max_memory_percent=0.9,
    )
    with policy.decoding(adapter), policy.plain_attention(), torch.inference_mode(False):  # it has its own thread
        with policy.causal_lm.continuous_batching_context_manager(
            generation_config=GenerationConfig(eos_token_id=sorted(policy.stop_ids), **draws),
            continuous_batching_config=batching,
        ) as manager:
            yield _Server(policy, (adapter, temperature), manager)


ENGINES: dict[str, Callable[[Policy, Episodes, RolloutConfig], Iterator[tuple[int, Result]]]] = {
    "native": native,
    "transformers": continuous,
}
