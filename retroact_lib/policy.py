"""A checkpoint as a 4-bit base with LoRA adapters: one object that scores text and lends its weights to the decoder.

The frozen base is NF4 with double quantisation (QLoRA, Dettmers et al. 2023), on CPU and CUDA by the same code path.
Planner and reflector share one adapter (the method) or have one each (an ablation).
"""

from __future__ import annotations

import copy
import ctypes
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from jinja2 import TemplateError
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import logging as hf_logging

from retroact_lib import checkpoints, prompts
from retroact_lib.config import PolicyConfig

ROLES = ("planner", "reflector")
SHARED_ADAPTER = "default"
"""peft's own default name, so that `PeftModel.from_pretrained(base, folder)` finds the shared adapter."""


GROUPED_ATTENTION = "grouped_sdpa"
"""Name under which transformers knows `grouped_attention`."""


def grouped_attention(module, query_BHWD, key_BGSD, value_BGSD, attention_mask, scaling=None, **kwargs):
    """Scaled dot-product attention in which the H / G query heads of a key head stand in line: nothing is copied.

    Same result as transformers' own, which for a masked text writes every key and value H / G times before it reads
    them once. PyTorch's ``enable_gqa`` rounds otherwise, by 4e-7, which in bfloat16 changes some greedy episodes.
    Returns [B, W, H, D] and no weights.
    """
    batch, heads, width, size = query_BHWD.shape
    groups = key_BGSD.shape[1]
    if attention_mask is None or groups == heads or kwargs.get("dropout"):
        return sdpa_attention_forward(
            module, query_BHWD, key_BGSD, value_BGSD, attention_mask, scaling=scaling, **kwargs
        )
    mask_BGLS = attention_mask.repeat(1, 1, heads // groups, 1)
    query_BGLD = query_BHWD.reshape(batch, groups, -1, size)
    out_BGLD = F.scaled_dot_product_attention(query_BGLD, key_BGSD, value_BGSD, attn_mask=mask_BGLS, scale=scaling)
    return out_BGLD.reshape(batch, heads, width, size).transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED_ATTENTION, grouped_attention)
AttentionMaskInterface.register(GROUPED_ATTENTION, sdpa_mask)


def device_of(config: PolicyConfig) -> torch.device:
    """The device on which the policy will live. Raises ValueError for a CUDA device that is not there."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch sees no CUDA card; use 'auto' or 'cpu'.")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


class Policy:
    """Tokenizer, frozen 4-bit base, trainable LoRA adapters."""

    def __init__(self, model, tokenizer, config: PolicyConfig, device: torch.device):
        self.model, self.tokenizer, self.config, self.device = model, tokenizer, config, device
        self.causal_lm = model.get_base_model()
        self.body = getattr(self.causal_lm, self.causal_lm.base_model_prefix)
        self.head = self.causal_lm.get_output_embeddings()
        self._merged: dict[str, tuple[list[int], dict[torch.nn.Module, _DenseLayer]]] = {}
        for layer in model.modules():
            if isinstance(layer, Linear4bit):
                # Where a CPU has AVX512-BF16, the first forward without gradients would pack the weights into a form
                # that has no backward.
                layer.support_avx512bf16_for_cpu = False
        model.eval()

    @classmethod
    def load(cls, config: PolicyConfig, seed: int = 0) -> Policy:
        """Load the checkpoint, quantise it, attach fresh adapters initialised from `seed`.

        Raises ValueError for a CUDA device that is not there; checkpoint errors as in `checkpoints.resolve`.
        """
        device = device_of(config)
        use_cuda = device.type == "cuda"
        compute = getattr(torch, config.compute_dtype)
        # On the CPU the residual stream stays float32: faster there, and the log-probs are cleaner.
        outer = compute if use_cuda else torch.float32
        if device.type == "cpu":
            _keep_freed_memory()
        found = checkpoints.resolve(config.checkpoint)
        quantization = None
        if config.quantize:
            quantization = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=compute,
            )
        try:
            with _quiet_transformers():
                tokenizer = AutoTokenizer.from_pretrained(found.path_or_hub_id)
                base = AutoModelForCausalLM.from_pretrained(
                    found.path_or_hub_id,
                    dtype=outer,
                    quantization_config=quantization,
                    device_map={"": 0} if use_cuda else None,
                )
        except OSError as error:
            raise ValueError(
                f"Cannot load the checkpoint {config.checkpoint!r}: expected the default {checkpoints.DEFAULT!r}, a "
                f"folder with config.json, or a hub name that can be reached ({str(error).splitlines()[0]})."
            ) from error
        if device.type == "cpu" and base.config._attn_implementation == "sdpa":
            base.set_attn_implementation(GROUPED_ATTENTION)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        base.requires_grad_(False)
        if config.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
            base.enable_input_require_grads()
        targets = (
            config.lora_targets
            if config.lora_targets == "all-linear"
            else [name.strip() for name in config.lora_targets.split(",")]
        )
        lora = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(seed)
        names = ROLES if config.separate_adapters else (SHARED_ADAPTER,)
        with _quiet_transformers():
            model = get_peft_model(base, copy.deepcopy(lora), adapter_name=names[0])
            for name in names[1:]:
                model.add_adapter(name, copy.deepcopy(lora))
        return cls(model, tokenizer, config, device)

    # -- text ---------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Token ids of a segment, without special tokens. Segments are tokenised one by one and never re-joined."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def prompt_ids(self, instruction: str, message: str, cue: str = "") -> list[int]:
        """The chat prompt (system: `instruction`, user: `message`), and `cue`, the first words of the answer."""
        if self.tokenizer.chat_template:
            chat = [{"role": "system", "content": instruction}, {"role": "user", "content": message}]
            try:
                text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            except TemplateError:  # some templates know no system role
                chat = [{"role": "user", "content": f"{instruction}\n\n{message}"}]
                text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        else:
            text = f"{self.tokenizer.bos_token or ''}{instruction}\n\n{message}\n"
        return self.encode(text + cue)

    def planner_prompt_ids(self, instruction: str, question: str, reflections: Sequence[str] = ()) -> list[int]:
        """What the planner reads before its first thought."""
        return self.prompt_ids(instruction, prompts.planner_prompt(question, reflections), prompts.cue(1))

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end any text: the tokenizer's and the generation config's end tokens."""
        listed = self.causal_lm.generation_config.eos_token_id
        listed = listed if isinstance(listed, list) else [listed]
        return frozenset(i for i in (self.tokenizer.eos_token_id, *listed) if i is not None)

    # -- adapters -----------------------------------------------------------------------------------------------

    def adapter(self, role: str) -> str:
        """Name of the adapter that plays `role`."""
        if role not in ROLES:
            raise ValueError(f"Unknown role {role!r}; expected one of {ROLES}.")
        return role if self.config.separate_adapters else SHARED_ADAPTER

    def select(self, adapter: str) -> None:
        """Make `adapter` the one that acts; the others keep their gradients switched on."""
        if self.model.active_adapter != adapter:
            self.model.set_adapter(adapter)
            for parameter in self.parameters():
                parameter.requires_grad_(True)

    def named_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """All adapter weights of all roles, in a fixed order."""
        return [(name, p) for name, p in self.model.named_parameters() if "lora_" in name]

    def parameters(self) -> list[torch.nn.Parameter]:
        return [p for _, p in self.named_parameters()]

    def adapter_state(self) -> dict[str, torch.Tensor]:
        """A copy of every adapter weight, by parameter name."""
        return {name: p.detach().cpu().clone() for name, p in self.named_parameters()}

    def load_adapter_state(self, state: dict[str, torch.Tensor]) -> None:
        own = dict(self.named_parameters())
        if own.keys() != state.keys():
            raise ValueError("The saved adapter does not fit this policy: other rank, targets or roles.")
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(state[name])

    def save(self, folder: str | Path) -> None:
        """Write the adapters in peft's layout: `PeftModel.from_pretrained(base, folder)` loads them.

        With separate adapters each role has a subfolder of its own.
        """
        self.model.save_pretrained(str(folder))

    def load_adapters(self, folder: str | Path) -> None:
        """Read what `save` wrote. Raises ValueError when the folder holds no adapter that fits."""
        for name in self.model.peft_config:
            place = Path(folder) / (name if self.config.separate_adapters else "")
            file = place / "adapter_model.safetensors"
            if not file.exists():
                raise ValueError(f"No adapter at {place}: expected the file adapter_model.safetensors there.")
            try:
                weights = load_file(file)
            except SafetensorError as error:
                raise ValueError(f"{file} is damaged ({error}); delete its run to have it trained again.") from error
            result = set_peft_model_state_dict(self.model, weights, adapter_name=name)
            if result.unexpected_keys:
                raise ValueError(f"The adapter at {place} does not fit: {len(result.unexpected_keys)} unknown weights.")

    # -- scoring ------------------------------------------------------------------------------------------------

    def log_probs(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor, role: str) -> torch.Tensor:
        """Natural log-probs of the masked tokens, float32, differentiable; 0 elsewhere.

        Shapes: `ids_BT` token ids, padded on the right, where causal attention never looks from the left of it;
        `mask_BT` 1 where the agent wrote the token (never at position 0, which nothing predicts). Returns [B, T]: entry
        (b, t) is log pi(ids[b, t] | ids[b, :t]). Only masked positions are projected on the vocabulary.
        """
        self.select(self.adapter(role))
        hidden_BTD = self.body(input_ids=ids_BT, use_cache=False).last_hidden_state
        wanted_BT = mask_BT[:, 1:].bool()
        logits_NV = self.logits(hidden_BTD[:, :-1][wanted_BT])
        logp_N = -F.cross_entropy(logits_NV, ids_BT[:, 1:][wanted_BT], reduction="none")
        logp_BT = torch.zeros(ids_BT.shape, dtype=torch.float32, device=ids_BT.device)
        logp_BT[:, 1:][wanted_BT] = logp_N
        return logp_BT

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Hidden states [N, D] on the vocabulary [N, V], computed in float32 whatever the model's data type."""
        bias = None if self.head.bias is None else self.head.bias.float()
        return F.linear(hidden_ND.float(), self.head.weight.float(), bias)

    # -- training and decoding ----------------------------------------------------------------------------------

    @contextmanager
    def training(self, dropout: bool) -> Iterator[None]:
        """Inside, the model is in training mode (gradient checkpointing acts), with its dropout or without."""
        self._merged.clear()  # stale after the first update, and training needs the memory
        self.model.train()
        if not dropout:
            for module in self.model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.eval()
        try:
            yield
        finally:
            self.model.eval()

    @contextmanager
    def decoding(self, adapter: str) -> Iterator[None]:
        """Inside, no gradients and `adapter` acts; on the CPU merged into dense weights W + (alpha / r) B A.

        One dense product is faster than a 4-bit one and the adapter's two, for the memory of a dense copy (in the
        compute data type) of the linear layers. The 4-bit weights themselves are not touched.
        """
        self.select(adapter)
        merged = self._merged_layers(adapter) if self.device.type == "cpu" else {}
        for layer, dense in merged.items():
            layer.forward = dense
        try:
            with torch.inference_mode():
                yield
        finally:
            for layer in merged:
                del layer.forward

    def _merged_layers(self, adapter: str) -> dict[torch.nn.Module, _DenseLayer]:
        """The linear layers and their dense stand-ins, made anew when the adapter has changed."""
        version = [p._version for name, p in self.named_parameters() if f".{adapter}." in name]
        if self._merged.get(adapter, (None,))[0] != version:
            self._merged.pop(adapter, None)
            dtype = getattr(torch, self.config.compute_dtype)
            self._merged[adapter] = version, {m: _DenseLayer(m, adapter, dtype) for m in self._linear_layers()}
        return self._merged[adapter][1]

    def _linear_layers(self) -> list[torch.nn.Module]:
        """Every adapted layer, and every 4-bit layer that has no adapter."""
        adapted = [m for m in self.model.modules() if isinstance(m, LoraLayer)]
        wrapped = {layer.base_layer for layer in adapted}
        return adapted + [m for m in self.model.modules() if isinstance(m, Linear4bit) and m not in wrapped]


class _DenseLayer:
    """What a linear layer and its adapter compute, as one matrix."""

    @torch.no_grad()
    def __init__(self, layer: torch.nn.Module, adapter: str, dtype: torch.dtype):
        base = layer.base_layer if isinstance(layer, LoraLayer) else layer
        weight_OI = base.weight.data
        if isinstance(base, Linear4bit):
            weight_OI = dequantize_4bit(weight_OI, base.weight.quant_state)
        if isinstance(layer, LoraLayer):
            weight_OI = weight_OI.float() + layer.get_delta_weight(adapter).float()
        self.weight_OI = weight_OI.to(dtype)
        self.bias_O = None if base.bias is None else base.bias.to(dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.to(self.weight_OI.dtype), self.weight_OI, self.bias_O).to(x.dtype)


def _keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks: touching fresh pages again and again makes training slower, and unevenly so."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    m_mmap_threshold, m_trim_threshold = -3, -1
    libc.mallopt(m_mmap_threshold, 1 << 30)
    libc.mallopt(m_trim_threshold, (1 << 31) - 1)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars or warnings while a small model loads."""
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        hf_logging.set_verbosity(level)
        hf_logging.enable_progress_bar()
