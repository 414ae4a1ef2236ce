"""Shared by all tests: no display, no model hub, and a tiny random model."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test that reaches for the hub fails at once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
matplotlib.use("Agg")


@pytest.fixture(scope="session")
def default_checkpoint():
    """The real default checkpoint, resolved (converted into the cache on its first use ever)."""
    from retroact_lib import checkpoints

    return checkpoints.resolve(checkpoints.DEFAULT)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """Folder of the tiny model."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


def make_tiny_checkpoint(folder: Path) -> str:
    """Write a tiny random Llama (float32, seeded) with the real SmolLM2 tokenizer; its sizes suit NF4."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from retroact_lib import checkpoints

    tokenizer = AutoTokenizer.from_pretrained(checkpoints.resolve(checkpoints.DEFAULT).path_or_hub_id)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
