"""The model part: scoring, masks, adapters, decoding, resuming; on a tiny random model, in real NF4."""

import dataclasses
import json
import math

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from retroact_lib import losses, training
from retroact_lib.attention import Kernel, visible
from retroact_lib.config import PolicyConfig, RLConfig, SFTConfig
from retroact_lib.decoding import Request, _inverse, _reading_batches, _Slot, decode
from retroact_lib.examples import Example, collate, micro_batches, within
from retroact_lib.packing import pack, packed_tokens
from retroact_lib.policy import Policy, compute_dtype
from retroact_lib.runs import Run

EXACT = dict(compute_dtype="float32", lora_rank=4, lora_alpha=8)


@pytest.fixture(scope="module")
def policy(tiny_checkpoint):
    policy = Policy.load(PolicyConfig(checkpoint=str(tiny_checkpoint), **EXACT), seed=0)
    awaken(policy)
    return policy


def awaken(policy, seed=1):
    """LoRA starts with B = 0, which hides half of the gradients; give B small random values."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=draws))


def some_examples(count=7, seed=0, role="planner", scored=False):
    draws = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        length = 8 + 5 * i
        ids = torch.randint(10, 1000, (length,), generator=draws).tolist()
        mask = [0] * 4 + [int(t % 3 != 0) for t in range(length - 4)]
        behaviour = [-1.0 * m for m in mask] if scored else None
        rows.append(Example(role, ids, mask, reward=1.0 - 0.1 * i, behaviour_logp=behaviour))
    return rows


def gradients(policy, rows, batches):
    for parameter in policy.parameters():
        parameter.grad = None
    for group in batches:
        batch = collate([rows[i] for i in group], policy.tokenizer.pad_token_id, policy.device)
        logp_BT = policy.log_probs(batch.ids_BT, batch.mask_BT, "planner")
        (losses.imitation_loss(logp_BT, batch.mask_BT) * len(group) / len(rows)).backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def test_ragged_batch_equals_batch_of_one(policy):
    rows = some_examples()
    one_by_one = gradients(policy, rows, [[i] for i in range(len(rows))])
    together = gradients(policy, rows, [list(range(len(rows)))])
    in_groups = gradients(policy, rows, micro_batches(rows, batch_tokens=80))
    assert one_by_one.norm() > 0
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(in_groups, one_by_one, rtol=1e-4, atol=1e-6)


def test_only_what_predicts_an_agent_token_gets_a_gradient(policy):
    rows = some_examples()
    batch = collate(rows, policy.tokenizer.pad_token_id, policy.device)
    packed, seen = pack(batch.ids_BT, batch.mask_BT.bool()), {}
    hook = policy.causal_lm.model.register_forward_hook(
        lambda _m, _i, output: (output.last_hidden_state.retain_grad(), seen.update(h=output.last_hidden_state))[0]
    )
    logp_BT = policy.log_probs(batch.ids_BT, batch.mask_BT, "planner")
    hook.remove()
    losses.imitation_loss(logp_BT, batch.mask_BT).backward()
    reached = (seen["h"].grad[0].abs().sum(-1) > 0).nonzero()[:, 0].tolist()
    assert reached == sorted(set(packed.predictor_K.tolist())) and len(reached) == batch.mask_BT.sum()
    assert (logp_BT[batch.mask_BT == 0] == 0).all()


# -- rows in one line -----------------------------------------------------------------------------------------------


def rows_that_overlap():
    """Three tasks under one instruction: a trial with its reflection, the same trial again, two others.

    Of the last other the agent wrote some of what all share.
    """
    instruction, trial = list(range(100, 120)), [7, 8, 9, 10, 11, 12]
    failed = Example("planner", instruction + trial, [0] * 21 + [1, 1, 0, 1, 1], reward=0.5)
    looked_back = Example("reflector", failed.ids + [20, 21, 22, 23], [0] * 27 + [1, 1, 1], reward=0.7)
    other = Example("planner", instruction + [50, 30, 31, 32], [0] * 22 + [1, 1], reward=1.0)
    last = Example("planner", instruction + [51, 30, 31, 32], [0] * 15 + [1] * 5 + [0, 0, 1, 1], reward=1.0)
    return [other, failed, looked_back, last, failed]


def test_rows_in_one_line_share_their_beginning_and_hold_one_another():
    rows = rows_that_overlap()
    batch = collate(rows, 0, torch.device("cpu"))
    packed = pack(batch.ids_BT, batch.mask_BT.bool())
    assert packed.layout.shared == 20 and packed.layout.rests == [3, 9, 3]  # the last token of a row is never read
    assert len(packed.ids_N) == 20 + 3 + 9 + 3 == packed_tokens([row.ids for row in rows]) - 3
    position_N = packed.layout.positions()[0]
    row_K, token_K = batch.mask_BT.nonzero(as_tuple=True)
    for row, token, place in zip(row_K.tolist(), token_K.tolist(), packed.predictor_K.tolist(), strict=True):
        assert position_N[place] == token - 1 and packed.ids_N[place] == rows[row].ids[token - 1]
    alone = pack(batch.ids_BT[:1], batch.mask_BT[:1].bool())
    assert alone.layout.shared == 0 and alone.layout.rests == [23] and packed_tokens([rows[0].ids]) == 24


@pytest.mark.parametrize("more", [0, 7])
def test_packed_rows_have_the_loss_and_gradient_of_rows_one_by_one(policy, more):
    """With a shared beginning, and beside `more` rows that share nothing."""
    rows = rows_that_overlap() + some_examples(more)
    one_by_one = gradients(policy, rows, [[i] for i in range(len(rows))])
    together = gradients(policy, rows, [list(range(len(rows)))])
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-6)
    batch = collate(rows, 0, policy.device)
    with torch.no_grad():
        packed_BT = policy.log_probs(batch.ids_BT, batch.mask_BT, "planner")
        logits_BTV = policy.model(batch.ids_BT, attention_mask=(batch.ids_BT != 0).long()).logits
    plain_BT = torch.log_softmax(logits_BTV[:, :-1], -1).gather(-1, batch.ids_BT[:, 1:, None])[..., 0]
    torch.testing.assert_close(packed_BT[:, 1:], plain_BT * batch.mask_BT[:, 1:], rtol=1e-4, atol=1e-5)


def test_micro_batches_put_rows_together_that_share_and_count_them_packed():
    rows = rows_that_overlap()
    groups = list(micro_batches(rows, batch_tokens=33))
    assert sorted(i for group in groups for i in group) == [0, 1, 2, 3, 4]
    assert {1, 2, 4} in [set(group) for group in groups], "a failed trial, its reflection and its like are one row"
    assert all(len(group) == 1 or packed_tokens([rows[i].ids for i in group]) <= 33 for group in groups)
    assert all(len({rows[i].role for i in group}) == 1 for group in micro_batches(rows, 1000, apart=True))
    assert len(list(micro_batches(rows, 1000))) == 1


def test_long_examples_are_left_out_or_cut():
    long = Example("planner", [1] * 9, [0] * 4 + [1] * 5, behaviour_logp=[0.0] * 4 + [-1.0] * 5)
    late, short = dataclasses.replace(long, mask=[0] * 8 + [1]), Example("planner", [1] * 6, [0] * 5 + [1])
    assert within([long, late, short], 6) == [short]
    cut, kept = within([long, late, short], 6, truncate=True)
    assert kept is short and cut.ids == [1] * 6 and cut.mask == [0] * 4 + [1, 1]
    assert cut.behaviour_logp == [0.0] * 4 + [-1.0, -1.0] and cut.sampled_logp is None


@pytest.mark.parametrize(
    "has, wanted", [({}, "float32"), ({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16")]
)
def test_the_data_type_is_what_the_cpu_computes_in(monkeypatch, has, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert compute_dtype(PolicyConfig(device="cpu")) == getattr(torch, wanted)
    assert compute_dtype(PolicyConfig(device="cpu", compute_dtype="float16")) == torch.float16


def test_an_adapted_layer_computes_what_peft_does(policy):
    layer = next(m for m in policy.model.modules() if isinstance(m, LoraLayer))
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    ours, theirs = layer.forward(x), type(layer).forward(layer, x)
    torch.testing.assert_close(ours, theirs)
    mine, peers = (torch.autograd.grad(y.square().sum(), [x, *weights]) for y in (ours, theirs))
    torch.testing.assert_close(mine, peers)
    with policy.model.disable_adapter():
        torch.testing.assert_close(layer.forward(x), layer.base_layer(x))


def test_log_probs_are_those_of_the_model(policy):
    row = some_examples(1)[0]
    batch = collate([row], policy.tokenizer.pad_token_id, policy.device)
    with torch.no_grad():
        ours = policy.log_probs(batch.ids_BT, batch.mask_BT, "planner")
        logits = policy.model(batch.ids_BT).logits.float()
    theirs = torch.log_softmax(logits[:, :-1], -1).gather(-1, batch.ids_BT[:, 1:, None])[..., 0]
    torch.testing.assert_close(ours[:, 1:], theirs * batch.mask_BT[:, 1:], rtol=1e-4, atol=1e-5)


def test_gradients_are_the_same_before_and_after_decoding(policy):
    rows = some_examples(3)
    before = gradients(policy, rows, [[0, 1, 2]])
    list(decode(policy, [episode(policy, "hello")], num_parallel=1))
    after = gradients(policy, rows, [[0, 1, 2]])
    assert torch.equal(before, after)


def test_gradients_in_nf4_agree_with_the_dequantised_model(tiny_checkpoint, tmp_path):
    rows = some_examples(4)
    quantised = Policy.load(PolicyConfig(checkpoint=str(tiny_checkpoint), **EXACT), seed=0)
    awaken(quantised)
    plain = AutoModelForCausalLM.from_pretrained(str(tiny_checkpoint), dtype=torch.float32)
    with torch.no_grad():
        from bitsandbytes.functional import dequantize_4bit

        modules = dict(plain.named_modules())
        for name, module in quantised.causal_lm.named_modules():
            base = getattr(module, "base_layer", None)
            if base is not None:
                modules[name].weight.copy_(dequantize_4bit(base.weight.data, base.weight.quant_state))
    plain.save_pretrained(tmp_path)
    quantised.tokenizer.save_pretrained(tmp_path)
    dequantised = Policy.load(PolicyConfig(checkpoint=str(tmp_path), quantize=False, **EXACT), seed=0)
    dequantised.load_adapter_state(quantised.adapter_state())
    a, b = (gradients(p, rows, [[0, 1, 2, 3]]) for p in (quantised, dequantised))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.9998


def test_missing_gradient_raises(policy, tmp_path):
    run = Run.open(tmp_path, "t", {}, {})
    trainer = training.Trainer(policy, run, SFTConfig(), 1e-3, 1, 1, 0)
    detached = training.Term(some_examples(1), lambda logp, batch: (torch.ones((), requires_grad=True) * 1, {}))
    with pytest.raises(RuntimeError, match="got no gradient"):
        trainer.update([detached])


def test_ratio_is_one_before_the_first_update(policy):
    rows = training.score(policy, some_examples(), batch_tokens=64)
    batch = collate(rows, policy.tokenizer.pad_token_id, policy.device)
    logp_BT = policy.log_probs(batch.ids_BT, batch.mask_BT, "planner")
    metrics = losses.ratio_metrics((logp_BT.detach() - batch.behaviour_logp_BT)[batch.mask_BT.bool()], eps=0.3)
    assert metrics["ratio_max"] == pytest.approx(1, abs=1e-3)
    assert metrics["ratio_mean"] == pytest.approx(1, abs=1e-3)


# -- decoding -------------------------------------------------------------------------------------------------------


def episode(policy, text, temperature=0.0, turns=3):
    replies = []
    ids = policy.encode(f"Once more (all prompts begin alike): {text} tells a story.")
    for turn in range(turns):
        request = Request(ids, "planner", lambda t: len(t) > 25, 12, temperature, seed=turn, fresh=turn == 0)
        replies.append((yield request))
        ids = policy.encode(f" And then {text}" * (turn + 1))
    return replies


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_reply_depends_on_neither_batch_size_nor_order(policy, temperature):
    names = [
        "Ann",
        "Bob the builder of very long bridges",
        "Cy",
        "Dora and her dog",
        "Eve",
        "Finn",
        "Gil",
        "Hanna",
        "Ida",
    ]
    alone = dict(decode(policy, [episode(policy, n, temperature) for n in names], num_parallel=1))
    batched = dict(decode(policy, [episode(policy, n, temperature) for n in names], num_parallel=8, read_tokens=60))
    turned = dict(decode(policy, [episode(policy, n, temperature) for n in names[::-1]], num_parallel=4))
    for i in range(len(names)):
        for other in (batched[i], turned[len(names) - 1 - i]):
            assert [r.ids for r in alone[i]] == [r.ids for r in other]
            for mine, theirs in zip(alone[i], other, strict=True):
                assert mine.logps == pytest.approx(theirs.logps, abs=1e-4)


def test_every_token_is_read_once(policy):
    """However many turns a conversation has: its keys and values are kept."""
    (width, more), read = (len(policy.encode("Bob tells a story.")), len(policy.encode(" More."))), []

    def talk():
        yield Request(policy.encode("Bob tells a story."), "planner", lambda t: False, 6, 1.0, seed=3, fresh=True)
        for turn in range(3):
            yield Request(policy.encode(" More."), "planner", lambda t: False, 6, 1.0, seed=turn)

    hook = policy.causal_lm.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    list(decode(policy, [talk()]))
    hook.remove()
    assert sum(read) == width + 3 * more + 4 * 6 - 1  # nobody reads the last token


def test_prompts_that_begin_alike_are_read_once(policy):
    beginning, tails = policy.encode("Once more, all of these prompts begin alike:"), [" Ann.", " Bob.", " Cy.", " Di."]
    read = []

    def talk(tail):
        yield Request(beginning + policy.encode(tail), "planner", lambda t: False, 2, 0.0, seed=0, fresh=True)

    hook = policy.causal_lm.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    list(decode(policy, [talk(tail) for tail in tails], num_parallel=4))
    hook.remove()
    longest = max(len(policy.encode(tail)) for tail in tails)
    assert read[0] == (1, len(beginning) + len(policy.encode(tails[0])))
    assert sum(rows * width for rows, width in read[1:]) <= 3 * longest + 4


def test_looking_seldom_changes_no_text(policy, monkeypatch):
    names = ["Ann", "Bob the builder of very long bridges", "Cy", "Dora and her dog", "Eve"]
    often = dict(decode(policy, [episode(policy, name, 1.0) for name in names], num_parallel=3))
    monkeypatch.setattr(policy, "tokens_between_looks", 5)
    seldom = dict(decode(policy, [episode(policy, name, 1.0) for name in names], num_parallel=3))
    for i in range(len(names)):
        assert [reply.ids for reply in often[i]] == [reply.ids for reply in seldom[i]]
        for mine, other in zip(often[i], seldom[i], strict=True):
            assert mine.logps == pytest.approx(other.logps, abs=1e-4) and mine.context == other.context


def test_draws_invert_the_distribution():
    draws = torch.Generator().manual_seed(0)
    mass_BV = torch.softmax(4 * torch.randn(40, 1000, generator=draws), dim=-1)
    draw_B = torch.rand(40, generator=draws, dtype=torch.float64)
    sums_BV = mass_BV.double().cumsum(-1)
    plain_B = (sums_BV <= draw_B[:, None] * sums_BV[:, -1:]).sum(-1)
    assert torch.equal(_inverse(mass_BV, draw_B), plain_B)
    certain = torch.zeros(1, 1000)
    certain[0, 700] = 1.0
    assert [int(_inverse(certain, torch.tensor([u], dtype=torch.float64))) for u in (0.0, 0.5, 0.999999)] == [700] * 3


def test_recorded_log_probs_are_those_of_the_whole_text(policy):
    request_ids = policy.encode("Bob tells a story.")

    def talk():
        first = yield Request(request_ids, "planner", lambda t: False, 6, 1.0, seed=3, fresh=True)
        second = yield Request(policy.encode(" More."), "planner", lambda t: False, 6, 1.0, seed=4)
        return first, second

    ((_, (first, second)),) = decode(policy, [talk()])
    more = policy.encode(" More.")
    ids = request_ids + first.ids + more + second.ids
    mask = [0] * len(request_ids) + [1] * len(first.ids) + [0] * len(more) + [1] * len(second.ids)
    batch = collate([Example("planner", ids, mask)], policy.tokenizer.pad_token_id, policy.device)
    with torch.no_grad():
        logp = policy.log_probs(batch.ids_BT, batch.mask_BT, "planner")[0]
    assert first.logps + second.logps == pytest.approx(logp[torch.tensor(mask).bool()].tolist(), abs=1e-3)
    assert second.context == len(ids)


def test_a_text_that_goes_on_with_another_adapter_is_read_again(tiny_checkpoint):
    two = Policy.load(PolicyConfig(checkpoint=str(tiny_checkpoint), separate_adapters=True, **EXACT), seed=0)
    with torch.no_grad():
        for i, parameter in enumerate(two.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) * 0.05)
    told, asked = two.encode("Bob tells a story."), two.encode(" What was it about?")

    def talk():
        first = yield Request(told, "planner", lambda t: False, 6, 1.0, seed=3, fresh=True)
        second = yield Request(asked, "reflector", lambda t: False, 6, 1.0, seed=4)
        return first, second

    ((_, (first, second)),) = decode(two, [talk()])
    ids = told + first.ids + asked + second.ids
    batch = collate([Example("reflector", ids, [0] * (len(ids) - 6) + [1] * 6)], 0, two.device)
    with torch.no_grad():
        logp = two.log_probs(batch.ids_BT, batch.mask_BT, "reflector")[0, -6:]
    assert second.logps == pytest.approx(logp.tolist(), abs=1e-3)


def test_reading_together_wastes_little_on_padding():
    rows = {place: _Slot(place, None, pending=[0] * length) for place, length in enumerate([200, 20, 22, 210, 400, 21])}
    assert [sorted(batch) for batch in _reading_batches(rows, 500)] == [[1, 2, 5], [0, 3], [4]]
    assert [sorted(batch) for batch in _reading_batches(rows, 300)] == [[1, 2, 5], [0], [3], [4]]


# -- adapters -------------------------------------------------------------------------------------------------------


def test_saved_adapter_loads_with_plain_peft(policy, tiny_checkpoint, tmp_path):
    policy.save(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(str(tiny_checkpoint), dtype=torch.float32)
    theirs = {n: p for n, p in PeftModel.from_pretrained(base, tmp_path).named_parameters() if "lora_" in n}
    ours = policy.adapter_state()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_separate_adapters_train_apart_and_come_back(tiny_checkpoint, tmp_path):
    config = PolicyConfig(checkpoint=str(tiny_checkpoint), separate_adapters=True, **EXACT)
    policy = Policy.load(config, seed=0)
    start = policy.adapter_state()
    run = Run.open(tmp_path / "runs", "t", {}, {})
    training.sft(policy, some_examples(4), SFTConfig(sft_epochs=1, sft_batch=2), run, seed=0)
    moved = {name for name, p in policy.adapter_state().items() if not torch.equal(p, start[name])}
    assert moved and all(".planner." in name for name in moved)
    policy.save(tmp_path / "adapter")
    again = Policy.load(config, seed=5)
    again.load_adapters(tmp_path / "adapter")
    ours, theirs = policy.adapter_state(), again.adapter_state()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_a_saved_adapter_lists_its_targets_in_order_and_half_of_one_is_refused(policy, tmp_path):
    policy.save(tmp_path)
    targets = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert len(targets) > 1 and targets == sorted(targets)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    half = dict(list(weights.items())[: len(weights) // 2])
    save_file(half, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"does not fit: it lacks {len(weights) - len(half)} weights"):
        policy.load_adapters(tmp_path)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("heads", [3, 9])
def test_attention_by_products_is_attention(heads, softcap):
    """Few queries over many keys, in a part of a larger store as the decoder holds it."""
    draw = torch.Generator().manual_seed(0)
    store_PGCD = torch.randn(7, 3, 40, 8, generator=draw)
    key_BGSD, value_BGSD = store_PGCD[:5, :, :33], store_PGCD[2:, :, :33]
    query_BHWD, kernel = torch.randn(5, heads, 1, 8, generator=draw), Kernel(0.4, softcap)
    mask_BXLS = visible(torch.tensor([[3], [32], [0], [17], [9]]), torch.arange(33), 8, torch.float32, heads // 3)
    plain = kernel(query_BHWD, key_BGSD, value_BGSD, mask_BXLS)
    torch.testing.assert_close(kernel.by_products(query_BHWD, key_BGSD, value_BGSD, mask_BXLS), plain)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(Kernel(0.5, softcap)(query_BHWD, key_BGSD, value_BGSD, mask_BXLS), plain)


def test_missing_adapter_is_one_sentence(policy, tmp_path):
    with pytest.raises(ValueError, match="No adapter at"):
        policy.load_adapters(tmp_path)


# -- loops ----------------------------------------------------------------------------------------------------------

LOOP = SFTConfig(sft_epochs=2, sft_batch=3, sft_warmup=2, batch_tokens=80, save_every=2)


def train(tiny_checkpoint, root, stage, stop_after=None):
    """Train as a fresh process would; `stop_after` kills it after that many updates."""
    config = PolicyConfig(checkpoint=str(tiny_checkpoint), lora_dropout=0.1, **EXACT)
    policy, run = Policy.load(config, seed=0), Run.open(root, stage, {}, {})
    rows = some_examples(8) + some_examples(4, seed=2, role="reflector")
    original = training.Trainer.update

    def update(self, *arguments):
        if stop_after is not None and self.position == stop_after:
            raise KeyboardInterrupt
        return original(self, *arguments)

    training.Trainer.update = update
    try:
        if stage == "sft":
            training.sft(policy, rows, LOOP, run, seed=3)
        else:
            scored = [dataclasses.replace(r, behaviour_logp=[-6.0 * m for m in r.mask]) for r in rows]
            rl = RLConfig(rl_batch=3, il_batch=2, max_kl=math.inf, objective=stage)
            training.joint_rl(policy, scored, rows, rl, LOOP, run, seed=3)
    except KeyboardInterrupt:
        return None
    finally:
        training.Trainer.update = original
    kept = ("update", "loss", "il_loss", "pg_loss", "grad_norm", "lr", "ratio_mean", "kl")
    return policy.adapter_state(), [{k: v for k, v in row.items() if k in kept} for row in run.metrics()]


@pytest.mark.parametrize("stage", ["sft", "truncated", "ppo"])
def test_killed_and_resumed_equals_never_killed(tiny_checkpoint, tmp_path, stage):
    adapter, metrics = train(tiny_checkpoint, tmp_path / "whole", stage)
    assert train(tiny_checkpoint, tmp_path / "killed", stage, stop_after=3) is None
    resumed, resumed_metrics = train(tiny_checkpoint, tmp_path / "killed", stage)
    assert metrics == resumed_metrics and [m["update"] for m in metrics] == list(range(1, len(metrics) + 1))
    assert all(torch.equal(adapter[name], resumed[name]) for name in adapter)


@pytest.mark.parametrize("weighting", sorted(losses.IMITATION))
def test_an_update_in_parts_has_the_loss_of_the_whole(policy, tmp_path, weighting):
    rows = some_examples(6)
    batch = collate(rows, policy.tokenizer.pad_token_id, policy.device)
    loss = losses.IMITATION[weighting](policy.log_probs(batch.ids_BT, batch.mask_BT, "planner"), batch.mask_BT).item()
    norms = []
    for batch_tokens in (32, 4096):
        config = SFTConfig(batch_tokens=batch_tokens)
        run = Run.open(tmp_path, f"t{batch_tokens}", {}, {})
        trainer = training.Trainer(policy, run, config, lr=0.0, warmup=0, updates=1, seed=0)
        trainer.update([training.imitation_term(rows, weighting)])
        assert run.metrics()[0]["loss"] == pytest.approx(loss, rel=1e-5)
        norms.append(run.metrics()[0]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_rounding_adds_no_update(policy, tmp_path):
    run = Run.open(tmp_path, "t", {}, {})
    training.sft(policy, some_examples(10), SFTConfig(sft_epochs=1.1, sft_batch=1), run, seed=0)
    assert len(run.metrics()) == 11


def test_the_kl_estimate_weighs_updates_by_their_tokens():
    metrics = [{"kl": 0.4, "ratio_tokens": 10}, {"il_loss": 1.0}, {"kl": 0.1, "ratio_tokens": 30}]
    assert training.recent_kl(metrics) == pytest.approx((4 + 3) / 40)
    assert training.recent_kl([]) == training.recent_kl(metrics[1:2]) == 0


def test_failures_push_within_bounds_under_ppo(tiny_checkpoint, tmp_path):
    """Rows that are all to become less probable: the clipped objective lets go of them, the truncated one does not."""
    moved = {}
    for objective in ("ppo", "truncated"):
        policy = Policy.load(PolicyConfig(checkpoint=str(tiny_checkpoint), **EXACT), seed=0)
        rows = [dataclasses.replace(row, reward=-1.0) for row in training.score(policy, some_examples(4), 512)]
        run = Run.open(tmp_path, objective, {}, {})
        config = RLConfig(rl_batch=4, rl_epochs=40, rl_lr=5e-3, il_weight=0.0, max_kl=math.inf, objective=objective)
        training.joint_rl(policy, rows, [], config, SFTConfig(), run, seed=0)
        moved[objective] = run.metrics()[-1]["kl"]
    assert moved["ppo"] < 0.3 < moved["truncated"]


@pytest.mark.parametrize(("epochs", "updates"), [(0.5, 2), (1, 3), (1.4, 5)])
def test_a_part_of_an_epoch_is_a_part_of_its_updates(policy, tmp_path, epochs, updates):
    run = Run.open(tmp_path, "t", {}, {})
    training.sft(policy, some_examples(5), SFTConfig(sft_epochs=epochs, sft_batch=2), run, seed=0)
    assert len(run.metrics()) == updates
    assert (run.path / training.EPOCH_ADAPTER.format(1)).exists() == (epochs > 1)


def test_training_lowers_the_loss(tiny_checkpoint, tmp_path):
    policy = Policy.load(PolicyConfig(checkpoint=str(tiny_checkpoint), **EXACT), seed=0)
    run = Run.open(tmp_path, "t", {}, {})
    training.sft(policy, some_examples(4), SFTConfig(sft_epochs=12, sft_batch=4, sft_lr=5e-3), run, seed=0)
    history = [row["il_loss"] for row in run.metrics()]
    assert history[-1] < history[0] - 0.3


def test_joint_rl_raises_the_probability_of_rewarded_rows(tiny_checkpoint, tmp_path):
    policy = Policy.load(PolicyConfig(checkpoint=str(tiny_checkpoint), **EXACT), seed=0)
    rows = training.score(policy, some_examples(4), 512)
    run = Run.open(tmp_path, "t", {}, {})
    config = RLConfig(rl_batch=4, rl_epochs=8, rl_lr=5e-3, il_weight=0.0, max_kl=math.inf)
    training.joint_rl(policy, rows, [], config, SFTConfig(), run, seed=0)
    after = training.score(policy, rows, 512)
    assert sum(map(sum, (r.behaviour_logp for r in after))) > sum(map(sum, (r.behaviour_logp for r in rows)))
    assert run.metrics()[0]["ratio_mean"] == pytest.approx(1, abs=1e-3)


def test_without_policy_gradient_it_is_so_many_imitation_updates(tiny_checkpoint, tmp_path):
    policy = Policy.load(PolicyConfig(checkpoint=str(tiny_checkpoint), **EXACT), seed=0)
    run = Run.open(tmp_path, "t", {}, {})
    config = RLConfig(pg_weight=0.0, il_batch=2, max_updates=5)
    training.joint_rl(policy, [], some_examples(3), config, SFTConfig(), run, seed=0)
    assert len(run.metrics()) == 5 and all("pg_loss" not in row for row in run.metrics())
    with pytest.raises(ValueError, match="pg_weight and max_updates are both 0"):
        training.joint_rl(policy, [], some_examples(3), RLConfig(pg_weight=0.0), SFTConfig(), run, seed=0)


def test_far_from_the_behaviour_policy_training_stops(tiny_checkpoint, tmp_path):
    policy = Policy.load(PolicyConfig(checkpoint=str(tiny_checkpoint), **EXACT), seed=0)
    run = Run.open(tmp_path, "t", {}, {})
    rows = some_examples(6, scored=True)  # pretends that the behaviour policy was far surer than this one
    training.joint_rl(
        policy, rows, [], RLConfig(il_weight=0.0, rl_batch=2, rl_epochs=1, max_kl=0.1), SFTConfig(), run, seed=0
    )
    assert len(run.metrics()) == 1 and run.metrics()[0]["kl"] > 0.1
    training.joint_rl(
        policy, rows, [], RLConfig(il_weight=0.0, rl_batch=2, rl_epochs=1, max_kl=9e9), SFTConfig(), run, seed=0
    )
    assert len(run.metrics()) == 3


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p, r: training.sft(p, [], SFTConfig(), r, 0), "nothing to train on"),
        (lambda p, r: training.sft(p, some_examples(2), SFTConfig(max_tokens=3), r, 0), "max_tokens = 3"),
        (lambda p, r: training.sft(p, [Example("planner", [5, 6], [0, 0])], SFTConfig(), r, 0), "no agent token"),
        (lambda p, r: training.joint_rl(p, some_examples(2), [], RLConfig(), SFTConfig(), r, 0), "call score"),
        (lambda p, r: collate([], 0, p.device), "no examples"),
    ],
)
def test_bad_input_is_one_sentence(policy, tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(policy, Run.open(tmp_path, "t", {}, {}))
