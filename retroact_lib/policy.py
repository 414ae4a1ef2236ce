"""A checkpoint as a 4-bit base with LoRA adapters: one object that scores text and lends its weights to the decoder.

The frozen base is NF4 with double quantisation (QLoRA, Dettmers et al. 2023), on CPU and CUDA by the same code path.
Planner and reflector share one adapter (the method) or have one each (an ablation).
"""

from __future__ import annotations

import copy
import ctypes
import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit
from jinja2 import TemplateError
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils import logging as hf_logging

from retroact_lib import attention, checkpoints, prompts
from retroact_lib.config import PolicyConfig
from retroact_lib.files import read_json, write_json
from retroact_lib.layers import AdaptedLinear, Float32Head, MergedLinear
from retroact_lib.packing import pack

ROLES = ("planner", "reflector")
SHARED_ADAPTER = "default"
"""peft's own default name, so that `PeftModel.from_pretrained(base, folder)` finds the shared adapter."""


def device_of(config: PolicyConfig) -> torch.device:
    """The device on which the policy will live: of several cards, the one of this process (LOCAL_RANK, else the first).

    Raises ValueError for a CUDA device that is not there.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch sees no CUDA card; use 'auto' or 'cpu'.")
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def compute_dtype(config: PolicyConfig) -> torch.dtype:
    """The data type of the products with the frozen weights on this machine.

    A CPU without AVX512-BF16 or AMX emulates bfloat16, which takes many times as long as float32.
    """
    if config.compute_dtype != "auto":
        return getattr(torch, config.compute_dtype)
    if device_of(config).type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.cpu.get_capabilities()
        fast = has.get("avx512_bf16") or has.get("amx_bf16")
    return torch.bfloat16 if fast else torch.float32


class Policy:
    """Tokenizer, frozen 4-bit base, trainable LoRA adapters."""

    def __init__(self, model, tokenizer, config: PolicyConfig, device: torch.device):
        self.model, self.tokenizer, self.config, self.device = model, tokenizer, config, device
        self.causal_lm = model.get_base_model()
        self.compute_dtype = compute_dtype(config)
        self.tokens_between_looks = 8 if device.type == "cuda" else 1
        """Tokens that the decoder writes before it looks at them: each look waits for the device."""
        self._merged: dict[str, tuple[list[int], dict[torch.nn.Module, MergedLinear]]] = {}
        for layer in self.linear_layers():
            layer.forward = AdaptedLinear(layer)
        for layer in model.modules():
            if isinstance(layer, Linear4bit):
                # Where a CPU has AVX512-BF16, the layer's own first forward without gradients would pack the weights
                # into a form that has no backward.
                layer.support_avx512bf16_for_cpu = False
        self.head = self.causal_lm.get_output_embeddings()
        if self.head.weight.dtype != torch.float32:
            self.head.forward = Float32Head(self.head)
        model.eval()

    @classmethod
    def load(cls, config: PolicyConfig, seed: int = 0) -> Policy:
        """Load the checkpoint, quantise it, attach fresh adapters initialised from `seed`.

        Raises ValueError for a CUDA device that is not there; checkpoint errors as in `checkpoints.resolve`.
        """
        device = device_of(config)
        use_cuda = device.type == "cuda"
        compute = compute_dtype(config)
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
                    device_map={"": device.index} if use_cuda else None,
                )
        except OSError as error:
            raise ValueError(
                f"Cannot load the checkpoint {config.checkpoint!r}: expected the default {checkpoints.DEFAULT!r}, a "
                f"folder with config.json, or a hub name that can be reached ({str(error).splitlines()[0]})."
            ) from error
        _refuse_unknown(base, config.checkpoint)
        base.set_attn_implementation(attention.NAME)
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

    @property
    def roles_apart(self) -> bool:
        """Whether planner and reflector have an adapter each, so that no pass can serve both."""
        return self.config.separate_adapters

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

        With separate adapters each role has a subfolder of its own. The same adapters make the same bytes.
        """
        self.model.save_pretrained(str(folder))
        for file in Path(folder).rglob("adapter_config.json"):
            settings = read_json(file)
            settings["target_modules"] = sorted(settings["target_modules"])  # peft keeps a set, in no fixed order
            write_json(file, settings)

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
            if missing := [key for key in result.missing_keys if "lora_" in key and f".{name}." in key]:
                raise ValueError(f"The adapter at {place} does not fit: it lacks {len(missing)} weights.")

    # -- scoring ------------------------------------------------------------------------------------------------

    def log_probs(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor, role: str) -> torch.Tensor:
        """Natural log-probs of the masked tokens, float32, differentiable; 0 elsewhere.

        Shapes: `ids_BT` token ids, of which nothing behind a row's last masked token is read; `mask_BT` 1 where the
        agent wrote the token (never at position 0, which nothing predicts). Returns [B, T]: entry (b, t) is
        log pi(ids[b, t] | ids[b, :t]). Only masked positions are projected on the vocabulary.
        """
        self.select(self.adapter(role))
        logp_BT = torch.zeros(ids_BT.shape, dtype=torch.float32, device=ids_BT.device)
        wanted_BT = mask_BT.bool()
        if not wanted_BT.any():
            return logp_BT
        packed = pack(ids_BT, wanted_BT)
        logits_KV = self.logits(
            packed.ids_N[None], packed.layout.positions(), packed.layout, logits_to_keep=packed.predictor_K
        )[0]
        logp_BT[wanted_BT] = -F.cross_entropy(logits_KV, ids_BT[wanted_BT], reduction="none")
        return logp_BT

    def logits(
        self,
        ids_BW: torch.Tensor,
        position_BW: torch.Tensor,
        layout: attention.Layout,
        cache: Cache | None = None,
        logits_to_keep: int | torch.Tensor = 1,
    ) -> torch.Tensor:
        """The model's own logits, float32, at the places `logits_to_keep`: the last so many, or these [K].

        Returns [B, K, V], or [1, K, V] for one line of tokens.
        """
        return self.causal_lm(
            input_ids=ids_BW,
            position_ids=position_BW,
            attention_mask=attention.as_mask(layout, ids_BW.device),
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=logits_to_keep,
        ).logits.float()

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
        """Inside, no gradients and `adapter` acts; merged into dense weights W + (alpha / r) B A where they fit.

        One dense product is faster than a 4-bit one and the adapter's two, for the memory of a dense copy (in the
        compute data type) of the linear layers. The 4-bit weights themselves are not touched.
        """
        self.select(adapter)
        merged = self._merged_layers(adapter) if self._merging_fits(adapter) else {}
        with _acting(merged), torch.inference_mode():
            yield

    @contextmanager
    def plain_layers(self) -> Iterator[None]:
        """Inside, the linear layers are those of peft and bitsandbytes: the reference of tests and benchmarks."""
        with _acting({layer: partial(type(layer).forward, layer) for layer in self.linear_layers()}):
            yield

    @contextmanager
    def plain_attention(self) -> Iterator[None]:
        """Inside, attention is transformers' own (which knows no layouts, so `log_probs` has nothing to go by).

        It wants queries, keys and values of one data type, so the linear layers answer in the residual stream's.
        """
        outer = self.causal_lm.dtype
        with ExitStack() as back:
            for layer in self.linear_layers():
                back.callback(layer.register_forward_hook(lambda _, given, answer: answer.to(outer)).remove)
            back.callback(self.causal_lm.set_attn_implementation, attention.NAME)
            self.causal_lm.set_attn_implementation("sdpa" if self.causal_lm._supports_sdpa else "eager")
            yield

    def _merged_layers(self, adapter: str) -> dict[torch.nn.Module, MergedLinear]:
        """The linear layers and their dense stand-ins, made anew when the adapter has changed."""
        version = [p._version for name, p in self.named_parameters() if f".{adapter}." in name]
        if self._merged.get(adapter, (None,))[0] != version:
            self._merged.pop(adapter, None)
            layers = {m: MergedLinear(m, adapter, self.compute_dtype) for m in self.linear_layers()}
            if self.device.type == "cpu" and self.head.weight.dtype == torch.float32:
                layers[self.head] = MergedLinear(self.head)
            self._merged[adapter] = version, layers
        return self._merged[adapter][1]

    def _merging_fits(self, adapter: str) -> bool:
        """Whether dense weights take at most half of the card's free memory, or are there. A CPU has them."""
        if self.device.type == "cpu" or adapter in self._merged:
            return True
        weights = sum(m.in_features * m.out_features for m in self.linear_layers())
        return 2 * weights * self.compute_dtype.itemsize <= torch.cuda.mem_get_info(self.device)[0]

    def linear_layers(self) -> list[torch.nn.Module]:
        """Every adapted linear layer, and every 4-bit layer that has no adapter."""
        layers = (m for m in self.model.modules() if isinstance(m, LoraLayer))
        adapted = [layer for layer in layers if isinstance(layer.base_layer, torch.nn.Linear)]
        wrapped = {layer.base_layer for layer in adapted}
        return adapted + [m for m in self.model.modules() if isinstance(m, Linear4bit) and m not in wrapped]


@contextmanager
def _acting(forwards: Mapping[torch.nn.Module, Callable]) -> Iterator[None]:
    """Inside, each layer computes what stands beside it."""
    before = {layer: layer.forward for layer in forwards}
    for layer, forward in forwards.items():
        layer.forward = forward
    try:
        yield
    finally:
        for layer, forward in before.items():
            layer.forward = forward


def _refuse_unknown(model: PreTrainedModel, name: str) -> None:
    """Raise ValueError for a model whose packed rows or cached slots would not be what it computes itself."""
    shape = model.config.get_text_config()
    strange = set(getattr(shape, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    if strange or model._is_stateful or not model._supports_attention_backend or not keeps:
        why = f"has layers of type {', '.join(sorted(strange))}" if strange else "computes attention its own way"
        raise ValueError(
            f"The checkpoint {name!r} is a {type(model).__name__}, which {why}; expected a causal transformer whose "
            "layers have full or sliding attention."
        )


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
