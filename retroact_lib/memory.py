"""Memory that a study will take, from its settings and the shape of the checkpoint: before anything is loaded.

The counts follow what the kernels of `layers`, `attention` and `decoding` keep. Symbols: h hidden size, m width of the
feed-forward layers, g size of all keys of a token, c and o bytes of a value in the products and in the residual stream.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import SimpleNamespace

from transformers import AutoConfig

from retroact_lib import checkpoints
from retroact_lib.config import StudyConfig
from retroact_lib.policy import compute_dtype, device_of

AGENT_SHARE = 0.3
"""Of the tokens of a pass; SQL rows have 0.29."""
HEAP = 1.4
"""On a CPU the process holds more than its live tensors, because freed blocks leave holes: 1.3 to 1.5 times as much."""
FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of an NF4 weight: half a byte, one for the scale of 64 weights, and four for the scales of 256 such blocks."""


@dataclass(frozen=True)
class Memory:
    """Bytes, by what takes them."""

    weights: float
    """The frozen model: linear layers (4-bit, unless the settings say otherwise), embeddings, head."""
    adapters: float
    """LoRA factors with their gradients and AdamW's two moments, float32."""
    update: float
    """What one pass of `batch_tokens` tokens keeps for its way back, and its logits."""
    dense: float
    """Merged weights for decoding, on a CPU."""
    cache: float
    """Keys and values of `num_parallel` conversations at full context, and one step's logits."""
    heap: float
    """How many times as much as `update` the process holds for it."""

    @property
    def training(self) -> float:
        """All that training holds at its peak."""
        return self.weights + self.adapters + self.heap * self.update

    @property
    def rollouts(self) -> float:
        """All that decoding holds at its peak."""
        return self.weights + self.adapters / 4 + self.dense + self.cache

    def __str__(self) -> str:
        return f"training {self.training / 2**30:.1f} GiB, rollouts at full context {self.rollouts / 2**30:.1f} GiB"


def estimate_memory(
    config: StudyConfig, shape=None, tokens: int = 0, agent_tokens: int = 0, card: bool | None = None
) -> Memory:
    """Memory beside Python and its libraries (about 1 GiB), on the device that the settings name.

    `shape` is a transformers config (default: the checkpoint's); `tokens` and `agent_tokens` are those of the largest
    pass (default: `batch_tokens`, three tenths of them the agent's); `card` asks for a CUDA card in bfloat16 (True) or
    for this CPU (False). A card that has memory to spare takes `dense` besides. Raises OSError or ValueError when the
    checkpoint's config cannot be read.
    """
    shape = shape or AutoConfig.from_pretrained(checkpoints.resolve(config.policy.checkpoint).path_or_hub_id)
    shape = shape.get_text_config() if hasattr(shape, "get_text_config") else shape
    tokens = tokens or config.sft.batch_tokens
    agent_tokens = agent_tokens or round(AGENT_SHARE * tokens)
    here = device_of(config.policy).type == "cuda"
    on_card = here if card is None else card
    c = compute_dtype(config.policy).itemsize if on_card == here else 2
    o = c if on_card else 4
    h, m, layers, vocabulary = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers, shape.vocab_size
    size = getattr(shape, "head_dim", None) or h // shape.num_attention_heads
    g = (getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads) * size
    a = shape.num_attention_heads * size
    matrices = {"q_proj": (h, a), "k_proj": (h, g), "v_proj": (h, g), "o_proj": (a, h)}
    matrices |= {"gate_proj": (h, m), "up_proj": (h, m), "down_proj": (m, h)}
    linear = layers * sum(i * o for i, o in matrices.values())
    embeddings = vocabulary * h * (1 if shape.tie_word_embeddings else 2)
    asked = config.policy.lora_targets
    names = matrices if asked == "all-linear" else [name.strip() for name in asked.split(",")]
    rank = config.policy.lora_rank
    lora = layers * rank * sum(sum(matrices[name]) for name in names if name in matrices)
    lora *= 2 if config.policy.separate_adapters else 1

    # Kept for the way back, values a token and layer. In float32 a norm's output serves all matrices that read it.
    normed = 2 * h * c if c == o else 5 * h * c
    attended = (3 * a + 4 * g) * c
    fed = 4 * m * c
    layer = 2 * h * o + normed + attended + fed + rank * c * len(names)
    logits = 3 * 4 * agent_tokens * vocabulary  # themselves, their log-softmax, and the gradient
    update = tokens * layers * layer + logits
    if config.policy.gradient_checkpointing:
        update = tokens * layers * h * o + max(logits, 2 * tokens * layer)
    dense = 0 if on_card else c * linear + 4 * vocabulary * h
    rollout = config.rollout
    context = -(-rollout.max_context // 256) * 256
    cache = 2 * rollout.num_parallel * context * layers * g * c + 3 * 4 * rollout.num_parallel * vocabulary
    weights = (FOUR_BITS if config.policy.quantize else o) * linear + o * embeddings
    return Memory(weights, 16 * lora, update, dense, cache, heap=1.0 if on_card else HEAP)


def in_words(config: StudyConfig) -> str:
    """Memory as a line of the plan; the sizes of a checkpoint out of reach are guessed from its name."""
    shape, guessed = None, ""
    try:
        shape = AutoConfig.from_pretrained(checkpoints.resolve(config.policy.checkpoint).path_or_hub_id)
    except (OSError, ValueError):
        size = re.search(r"(\d+(?:\.\d+)?)\s*b\b", config.policy.checkpoint.replace("-", " "), re.IGNORECASE)
        if not size:
            return "unknown (the checkpoint's config cannot be read from here)"
        shape, guessed = usual_shape(float(size[1]) * 1e9), ", sizes guessed from the name (config out of reach)"
    on_card = f"{estimate_memory(config, shape, card=True)} on a CUDA card"
    here = "" if device_of(config.policy).type == "cuda" else f"{estimate_memory(config, shape)} on this CPU; "
    return f"{here}{on_card}; beside Python and its libraries (about 1 GiB){guessed}"


def usual_shape(parameters: float) -> SimpleNamespace:
    """A decoder of that many weights as they usually are: 12 L d^2 weights, d = 128 L.

    7e9 gives 33 layers of width 4,224; Llama 2 has 32 of 4,096.
    """
    layers = round((parameters / (12 * 128**2)) ** (1 / 3))
    hidden = 128 * layers
    return SimpleNamespace(
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=8 * hidden // 3,
        num_attention_heads=layers,
        vocab_size=32_000,
        tie_word_embeddings=False,
    )
