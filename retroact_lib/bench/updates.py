"""Updates: ours, ours without one of its parts, and those of the peers, on the same rows and the same 4-bit model."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from retroact_lib import training
from retroact_lib.bench.hardware import OURS, seconds
from retroact_lib.config import SFTConfig
from retroact_lib.examples import Example
from retroact_lib.packing import packed_tokens
from retroact_lib.policy import Policy
from retroact_lib.runs import Run

WHOLE = 1 << 20
"""More tokens than any update has: one pass."""


def contenders(policy: Policy, batches: Sequence[Sequence[Example]], folder: Path) -> dict[str, Callable[[int], dict]]:
    """By name, what takes one imitation update of a batch of examples on the policy, in its present adapters.

    Each returns `tokens_per_s` of the examples as they are, however few of them it had to compute.
    """
    made: dict[str, Callable[[Sequence[Example]], float]] = {
        OURS: _ours(policy, folder / "ours"),
        "rows one by one": _ours(policy, folder / "rows", batch_tokens=1),
        "peft's layers": _ours(policy, folder / "layers", plain=True),
        "Trainer": _trainer(policy, folder / "trainer"),
    }
    if importlib.util.find_spec("trl"):
        made["TRL"] = _trl(policy, folder / "trl")
    return {name: _timed(update, batches) for name, update in made.items()}


def update_flops(policy: Policy, examples: Sequence[Example]) -> float:
    """FLOPs that an update of these examples needs in its matrix products with frozen weights, packed.

    Two products for each weight and token (forward, and backward to the inputs), two FLOPs each; the head only where
    the agent wrote. Attention and adapters are not counted.
    """
    linear = sum(m.in_features * m.out_features for m in policy.linear_layers())
    agent = sum(sum(example.mask) for example in examples)
    return 4 * (linear * packed_tokens([e.ids for e in examples]) + policy.head.weight.numel() * agent)


def _timed(update: Callable[[Sequence[Example]], float], batches: Sequence[Sequence[Example]]):
    def work(number: int) -> dict:
        batch = batches[number % len(batches)]
        return {"tokens_per_s": sum(len(e.ids) for e in batch) / update(batch)}

    return work


def _ours(policy: Policy, folder: Path, batch_tokens: int = WHOLE, plain: bool = False):
    config = replace(SFTConfig(), batch_tokens=batch_tokens)
    trainer = training.Trainer(policy, Run.open(folder, "sft", {}, {}), config, 1e-5, 1, 1_000_000, 0)

    def update(examples: Sequence[Example]) -> float:
        with policy.plain_layers() if plain else nullcontext():
            term = training.imitation_term(examples)
            return seconds(lambda: trainer.update([term]), policy.device)

    return update


class _Clock(TrainerCallback):
    """Time from the beginning of a peer's step, its batch at hand, to the end of its optimizer step."""

    def on_step_begin(self, *args, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.start


def _labelled(examples: Sequence[Example]):
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "input_ids": e.ids,
                "attention_mask": [1] * len(e.ids),
                "labels": [token if m else -100 for token, m in zip(e.ids, e.mask, strict=True)],
            }
            for e in examples
        ]
    )


def _settings(policy: Policy, folder: Path, count: int) -> dict:
    return dict(
        output_dir=str(folder),
        use_cpu=policy.device.type == "cpu",
        per_device_train_batch_size=count,
        max_steps=1,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def _trainer(policy: Policy, folder: Path):
    """transformers' `Trainer` with its defaults."""

    def update(examples: Sequence[Example]) -> float:
        clock = _Clock()
        with policy.plain_layers(), policy.plain_attention():
            trainer = Trainer(
                policy.model,
                TrainingArguments(**_settings(policy, folder, len(examples))),
                train_dataset=_labelled(examples),
                data_collator=DataCollatorForSeq2Seq(policy.tokenizer),
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return clock.seconds

    return update


def _trl(policy: Policy, folder: Path):
    """TRL's `SFTTrainer` with its defaults, on the same labels.

    It casts adapters to bfloat16, which a machine that only emulates bfloat16 should not pay for: they are cast back.
    """
    from trl import SFTConfig as TRLConfig
    from trl import SFTTrainer

    def update(examples: Sequence[Example]) -> float:
        clock = _Clock()
        settings = _settings(policy, folder, len(examples)) | {"bf16": False, "gradient_checkpointing": False}
        with policy.plain_layers(), policy.plain_attention():
            trainer = SFTTrainer(
                policy.model,
                TRLConfig(**settings, max_length=None),
                train_dataset=_labelled(examples).remove_columns("attention_mask"),
                processing_class=policy.tokenizer,
                callbacks=[clock],
            )
            for parameter in policy.parameters():
                parameter.data = parameter.data.float()
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return clock.seconds

    return update
