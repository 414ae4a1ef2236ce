"""The two training loops: imitation (stage 1) and joint reinforcement learning (stage 2).

Both read the same way: a plan of which examples each update sees, micro-batches, loss, backward, clip, step, log,
checkpoint. A run that is killed and started again goes on from its last checkpoint with the same numbers.

Logged with every update: `loss`, `il_loss`, `pg_loss`, `lr`, `grad_norm` (before clipping), `agent_tokens`,
`tokens_per_s`, `peak_memory_gib`, and in stage 2 what `losses.ratio_metrics` gives and the mean reward of the examples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from retroact_lib import losses
from retroact_lib.config import RLConfig, SFTConfig
from retroact_lib.examples import Batch, Example, collate, micro_batches, within
from retroact_lib.files import replace_folder
from retroact_lib.policy import Policy
from retroact_lib.progress import progress
from retroact_lib.runs import Run, peak_memory_gib

EPOCH_ADAPTER = "adapter-epoch{}"
"""Folder of the adapters after an epoch of stage 1, counted from 1."""


def sft(policy: Policy, examples: Sequence[Example], config: SFTConfig, run: Run, seed: int) -> None:
    """Stage 1: one cross-entropy over planner and reflector examples. Trains `policy` in place.

    The adapters after every epoch but the last stay in the run's folder, under `EPOCH_ADAPTER`. Raises ValueError for
    empty data or an example without an agent token.
    """
    examples = _usable(examples, config)
    per_epoch = -(-len(examples) // config.sft_batch)
    updates = math.ceil(round(per_epoch * config.sft_epochs, 6))
    plan = _plan(len(examples), config.sft_batch, updates, seed)
    trainer = Trainer(policy, run, config, config.sft_lr, config.sft_warmup, updates, seed)
    for update in progress(range(trainer.position, updates), "SFT", "update", done=trainer.position, total=updates):
        if update and update % per_epoch == 0:
            replace_folder(run.path / EPOCH_ADAPTER.format(update // per_epoch), policy.save)
        trainer.update([imitation_term([examples[i] for i in plan[update]], config.il_weighting)])


def joint_rl(
    policy: Policy,
    pg_examples: Sequence[Example],
    il_examples: Sequence[Example],
    config: RLConfig,
    sft_config: SFTConfig,
    run: Run,
    seed: int,
) -> None:
    """Stage 2: L = L_PG + lambda L_IL on a fixed off-policy batch. Trains `policy` in place.

    `pg_examples` must be scored (see `score`). Stops early when `recent_kl` exceeds `config.max_kl`. With
    `pg_weight` 0 they are not looked at, and `max_updates` says how many imitation updates to take.
    Raises ValueError for empty data or unscored examples.
    """
    use_pg, use_il = config.pg_weight != 0, config.il_weight != 0 and config.il_batch > 0
    if not use_pg and not config.max_updates:
        raise ValueError("pg_weight and max_updates are both 0; expected in max_updates how many updates to take.")
    pg_examples = _usable(pg_examples, sft_config) if use_pg else []
    if any(example.behaviour_logp is None for example in pg_examples):
        raise ValueError("A policy-gradient example has no behaviour log-probs; call score() first.")
    objective = losses.OBJECTIVES[config.objective]
    logratios: list[torch.Tensor] = []

    def pg_term(logp_BT: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        loss = objective(logp_BT, batch.behaviour_logp_BT, batch.reward_B, batch.mask_BT, config.eps)
        logratios.append((logp_BT.detach() - batch.behaviour_logp_BT)[batch.mask_BT.bool()])
        return config.pg_weight * loss, {"pg_loss": float(loss.detach()), "reward": float(batch.reward_B.mean())}

    def ratios() -> dict[str, float]:
        seen = losses.ratio_metrics(torch.cat(logratios), config.eps) if logratios else {}
        logratios.clear()
        return seen

    il_examples = _usable(il_examples, sft_config) if use_il else []
    updates = -(-len(pg_examples) // config.rl_batch) * config.rl_epochs if use_pg else config.max_updates
    updates = min(updates, config.max_updates or updates)
    pg_plan = _plan(len(pg_examples), config.rl_batch, updates, seed)
    il_plan = _plan(len(il_examples), config.il_batch, updates, seed + 1) if use_il else []
    trainer = Trainer(policy, run, sft_config, config.rl_lr, config.rl_warmup, updates, seed)
    for update in progress(
        range(trainer.position, updates), "Joint RL", "update", done=trainer.position, total=updates
    ):
        if recent_kl(run.metrics()[-config.kl_updates :]) > config.max_kl:
            break
        terms = []
        if use_pg:
            # Without dropout: the ratio compares two policies, not two draws of a mask.
            terms.append(Term([pg_examples[i] for i in pg_plan[update]], pg_term, dropout=False))
        if use_il:
            shown = [il_examples[i] for i in il_plan[update]]
            terms.append(imitation_term(shown, sft_config.il_weighting, config.il_weight))
        trainer.update(terms, ratios)


def recent_kl(metrics: Sequence[dict[str, float]]) -> float:
    """The KL estimate over the agent tokens of some logged updates, in nats per token; 0 without any."""
    tokens = sum(line.get("ratio_tokens", 0) for line in metrics)
    return sum(line["kl"] * line["ratio_tokens"] for line in metrics if "kl" in line) / max(tokens, 1)


def score(policy: Policy, examples: Sequence[Example], batch_tokens: int) -> list[Example]:
    """Fill in `behaviour_logp` with the present policy's log-probs, by the kernel that training uses.

    The sampler's own log-probs come from a faster kernel; the difference would pass for a policy change.
    """
    scored: list[Example] = list(examples)
    for group in progress(list(micro_batches(examples, batch_tokens, policy.roles_apart)), "Scoring", "batch"):
        batch = collate([examples[i] for i in group], policy.tokenizer.pad_token_id, policy.device)
        with torch.no_grad():
            logp_BT = policy.log_probs(batch.ids_BT, batch.mask_BT, examples[group[0]].role).cpu()
        for b, i in enumerate(group):
            scored[i] = replace(examples[i], behaviour_logp=logp_BT[b, : len(examples[i].ids)].tolist())
    return scored


def sampler_gap(examples: Sequence[Example]) -> float:
    """How far the sampler's record is from `behaviour_logp`: mean |difference| in nats per sampled token.

    Two kernels differ by rounding alone, so a gap that is not small says that training reads another text than was
    played. 0 without sampled tokens.
    """
    gaps = [
        abs(ours - theirs)
        for example in examples
        for ours, theirs in zip(example.behaviour_logp or (), example.sampled_logp or (), strict=False)
        if theirs
    ]
    return sum(gaps) / max(len(gaps), 1)


@dataclass
class Term:
    """A part of an update's loss: its examples, and what makes a loss and metrics of (log-probs, batch)."""

    examples: Sequence[Example]
    loss: Callable[[torch.Tensor, Batch], tuple[torch.Tensor, dict[str, float]]]
    dropout: bool = True
    by_token: bool = False
    """Whether `loss` counts agent tokens alike, not examples."""

    def share(self, examples: Sequence[Example]) -> float:
        """What a pass over some of the term's examples counts in its loss; over all of them, 1."""
        if not self.by_token:
            return len(examples) / len(self.examples)
        return sum(sum(example.mask) for example in examples) / sum(sum(example.mask) for example in self.examples)


class Trainer:
    """AdamW with linear warm-up and decay over the policy's adapters, resumable from the run's checkpoint."""

    def __init__(self, policy: Policy, run: Run, config: SFTConfig, lr: float, warmup: int, updates: int, seed: int):
        self.policy, self.run, self.config, self.updates = policy, run, config, updates
        self.optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.0)

        # transformers' schedule begins at 0, so that the first update would change nothing
        def factor(update: int) -> float:
            return min((update + 1) / max(warmup, 1), (updates - update) / max(updates - warmup, 1), 1.0)

        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.position = 0
        torch.manual_seed(seed)
        state = run.load_state()
        if state:
            self.position = state["position"]
            policy.load_adapter_state(state["adapter"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            torch.set_rng_state(state["rng"])
            if state["cuda_rng"] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"])
        run.keep_metrics(self.position)

    def update(self, terms: Sequence[Term], more: Callable[[], dict[str, float]] = dict) -> None:
        """One optimizer step on the sum of the terms; `more` gives further metrics after the backward passes.

        Raises RuntimeError when a trainable weight ends the backward pass without a gradient, or when the loss or a
        gradient is not finite.
        """
        start, tokens, agent_tokens = time.perf_counter(), 0, 0
        metrics: dict[str, float] = {}
        self.optimizer.zero_grad(set_to_none=True)
        for dropout, together in self._passes(terms):
            rows = [(term, example) for term in together for example in term.examples]
            shown = [example for _, example in rows]
            with self.policy.training(dropout):
                for group in micro_batches(shown, self.config.batch_tokens, self.policy.roles_apart):
                    batch = self._collate([shown[i] for i in group])
                    logp_BT = self.policy.log_probs(batch.ids_BT, batch.mask_BT, shown[group[0]].role)
                    losses_of_terms = []
                    for term in together:
                        own = [b for b, i in enumerate(group) if rows[i][0] is term]
                        if not own:
                            continue
                        part = self._collate([shown[group[b]] for b in own])
                        loss, seen = term.loss(logp_BT[own, : part.ids_BT.shape[1]], part)
                        share = term.share([shown[group[b]] for b in own])
                        losses_of_terms.append(share * loss)
                        for name, value in {"loss": float(loss.detach()), **seen}.items():
                            metrics[name] = metrics.get(name, 0.0) + share * value
                    sum(losses_of_terms).backward()
                    tokens += sum(len(shown[i].ids) for i in group)
                    agent_tokens += int(batch.mask_BT.sum())
        if not math.isfinite(metrics["loss"]):
            raise RuntimeError(f"Update {self.position + 1} of {self.run.path.name}: the loss is not finite.")
        self._check_gradients({example.role for term in terms for example in term.examples})
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.grad_clip, error_if_nonfinite=True)
        metrics |= {"grad_norm": float(norm), **more()}
        metrics["lr"] = self.scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.scheduler.step()
        self.position += 1
        self.run.log(
            update=self.position,
            **metrics,
            tokens=tokens,
            agent_tokens=agent_tokens,
            tokens_per_s=round(tokens / (time.perf_counter() - start), 1),
            peak_memory_gib=round(peak_memory_gib(self.policy.device), 2),
        )
        if self.position % self.config.save_every == 0 and self.position < self.updates:
            self.save()

    def _passes(self, terms: Sequence[Term]) -> list[tuple[bool, list[Term]]]:
        """Terms that one pass can serve: all of them, unless some want dropout and others do not."""
        if not self.policy.config.lora_dropout:
            return [(False, list(terms))]
        passes = [(dropout, [term for term in terms if term.dropout is dropout]) for dropout in (False, True)]
        return [(dropout, together) for dropout, together in passes if together]

    def _collate(self, examples: Sequence[Example]) -> Batch:
        return collate(examples, self.policy.tokenizer.pad_token_id, self.policy.device)

    def save(self) -> None:
        self.run.save_state(
            {
                "position": self.position,
                "adapter": self.policy.adapter_state(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state() if self.policy.device.type == "cuda" else None,
            }
        )

    def _check_gradients(self, roles: set[str]) -> None:
        acted = {self.policy.adapter(role) for role in roles}
        for name, parameter in self.policy.named_parameters():
            if parameter.grad is None and any(f".{adapter}." in name for adapter in acted):
                raise RuntimeError(
                    f"The trainable weight {name} got no gradient: the frozen weights are in a form without backward."
                )


def imitation_term(examples: Sequence[Example], weighting: str = "example", weight: float = 1.0) -> Term:
    """`weight` times L_IL over `examples`, as a term of an update."""

    def loss(logp_BT: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        found = losses.IMITATION[weighting](logp_BT, batch.mask_BT)
        return weight * found, {"il_loss": float(found.detach())}

    return Term(examples, loss, by_token=weighting == "token")


def _plan(examples: int, batch: int, updates: int, seed: int) -> list[list[int]]:
    """The examples that each update sees: pass after pass over a fresh permutation."""
    draws = torch.Generator().manual_seed(seed)
    order: list[int] = []
    plan: list[list[int]] = []
    for _ in range(updates):
        if not order:
            order = torch.randperm(examples, generator=draws).tolist()
        plan.append(order[:batch])
        order = order[batch:]
    return plan


def _usable(examples: Sequence[Example], config: SFTConfig) -> list[Example]:
    kept = within(examples, config.max_tokens, config.truncate)
    if not kept:
        raise ValueError(
            f"There is nothing to train on: {len(examples)} examples, of which {len(kept)} have at most "
            f"max_tokens = {config.max_tokens} tokens."
        )
    if any(not any(e.mask) for e in kept):
        raise ValueError("An example has no agent token; check that the trajectory has turns.")
    return kept
