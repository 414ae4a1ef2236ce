"""Any causal transformer: training, decoding and the plain model agree on tiny random models of many families."""

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from retroact_lib import attention
from retroact_lib.config import PolicyConfig
from retroact_lib.decoding import Request, decode
from retroact_lib.examples import Example, collate
from retroact_lib.policy import Policy

SIZES = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
)
WINDOW = 8
"""Shorter than every text here, so that a window that is not honoured shows."""
FAMILIES = {
    "Llama": {},
    "Qwen2": dict(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2),
    "Qwen3": dict(head_dim=16),
    "Gemma2": dict(head_dim=16, sliding_window=WINDOW, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "Gemma3Text": dict(head_dim=16, sliding_window=WINDOW, sliding_window_pattern=2),
    "Mistral": dict(sliding_window=WINDOW),
    "Granite": dict(logits_scaling=0.25, attention_multiplier=0.3, residual_multiplier=0.5, embedding_multiplier=3.0),
    "Cohere": dict(logit_scale=4.0),
    "Cohere2": dict(logit_scale=4.0, sliding_window=WINDOW, head_dim=16),
    "Phi3": dict(sliding_window=WINDOW),
    "Olmo2": {},
    "Starcoder2": dict(sliding_window=WINDOW),
    "GPTNeoX": {},
    "Mixtral": dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
}


@pytest.fixture(autouse=True)
def several_parts(monkeypatch):
    """The texts here are short; longer ones attend in several parts."""
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", (5, 5))


def make_checkpoint(folder, family: str, tokenizer, **more) -> str:
    """Write a tiny random model of the family, with logits large enough for a difference to show."""
    config_class = getattr(transformers, f"{family}Config")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = config_class(vocab_size=len(tokenizer), **{**SIZES, **FAMILIES.get(family, {}), **ids, **more})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(default_checkpoint):
    return AutoTokenizer.from_pretrained(default_checkpoint.path_or_hub_id)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_decoding_and_the_plain_model_agree(family, tokenizer, tmp_path):
    folder = make_checkpoint(tmp_path, family, tokenizer)
    policy = Policy.load(PolicyConfig(checkpoint=folder, compute_dtype="float32", lora_rank=2), seed=0)
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            draws = torch.Generator().manual_seed(i)
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=draws))
    beginning = policy.encode("All of these begin alike, with one long instruction:")

    def talk(text):
        first = yield Request(beginning + policy.encode(text), "planner", lambda t: False, 6, 1.0, seed=3, fresh=True)
        second = yield Request(policy.encode(" And so it went on."), "planner", lambda t: False, 5, 1.0, seed=4)
        return first, second

    texts = [" Ann and Bob tell a story.", " Cy sleeps.", " Nobody knows who was there when the bridge fell down."]
    rows, sampled = [], []
    for i, (first, second) in sorted(decode(policy, [talk(text) for text in texts])):
        told, more = beginning + policy.encode(texts[i]), policy.encode(" And so it went on.")
        ids = told + first.ids + more + second.ids
        mask = [0] * len(told) + [1] * len(first.ids) + [0] * len(more) + [1] * len(second.ids)
        rows.append(Example("planner", ids, mask))
        sampled += first.logps + second.logps
    batch = collate(rows, policy.tokenizer.pad_token_id, policy.device)
    wanted_BT = batch.mask_BT.bool()
    with torch.no_grad():
        trained = policy.log_probs(batch.ids_BT, batch.mask_BT, "planner")[wanted_BT]
        policy.causal_lm.set_attn_implementation("eager")
        plain = []
        for row in rows:
            logp_TV = policy.model(torch.tensor([row.ids])).logits[0].float().log_softmax(-1)
            plain += [float(logp_TV[t - 1, row.ids[t]]) for t in range(len(row.ids)) if row.mask[t]]
    two_bytes = Policy.load(PolicyConfig(checkpoint=folder, compute_dtype="bfloat16", lora_rank=2), seed=0)
    two_bytes.load_adapter_state(policy.adapter_state())
    close = two_bytes.log_probs(batch.ids_BT, batch.mask_BT, "planner")[wanted_BT]
    close.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in two_bytes.parameters() if parameter.grad is not None)
    assert (close - trained).abs().mean() < 0.1 * trained.std(), "rounded, and no more than rounded"
    assert trained.std() > 0.3, "log-probs that are all alike would show nothing"
    assert trained.tolist() == pytest.approx(plain, abs=1e-3)
    assert sampled == pytest.approx(plain, abs=1e-3)


@pytest.mark.parametrize(
    "family, more, says",
    [
        ("StableLm", {}, "computes attention its own way"),
        ("Mamba", dict(state_size=4), "linear_attention"),
        ("Qwen3Next", dict(layer_types=["linear_attention", "full_attention"] * 2, head_dim=16), "linear_attention"),
    ],
)
def test_a_model_of_another_kind_is_refused_in_one_sentence(family, more, says, tokenizer, tmp_path):
    folder = make_checkpoint(tmp_path, family, tokenizer, **more)
    with pytest.raises(ValueError, match=f"{family}ForCausalLM.*{says}.*expected a causal transformer"):
        Policy.load(PolicyConfig(checkpoint=folder, compute_dtype="float32"))
