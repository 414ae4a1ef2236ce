"""Memory as it is planned, beside memory as it is taken."""

import itertools

import pytest
from torch.profiler import ProfilerActivity, profile

from retroact_lib import stages, training
from retroact_lib.bench.growth import random_examples
from retroact_lib.bench.hardware import PeakMemory
from retroact_lib.config import SFTConfig, load_config
from retroact_lib.decoding import Request, decode
from retroact_lib.memory import estimate_memory, in_words, usual_shape
from retroact_lib.runs import Run


def live_peak(work) -> int:
    """The most bytes of live tensors beside those that were there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = (e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]")
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}])
def test_an_update_takes_what_was_planned(changes, tmp_path):
    """Within a tenth, in the data type of this machine."""
    config = load_config("smoke", **changes)
    policy = stages.load_policy(config, None)
    rows = random_examples(256, 3, policy.head.weight.shape[0])
    agent = sum(sum(row.mask) for row in rows)
    planned = estimate_memory(config, tokens=3 * 256, agent_tokens=agent)
    held = sum(p.nbytes for p in policy.model.parameters() if not p.requires_grad)
    assert planned.weights == pytest.approx(held, rel=0.1)
    assert planned.adapters == 16 * sum(p.numel() for p in policy.parameters())
    trainer = training.Trainer(policy, Run.open(tmp_path, "sft", {}, {}), SFTConfig(batch_tokens=4096), 1e-5, 1, 9, 0)
    trainer.update([training.imitation_term(random_examples(16, 1, 1000))])  # makes the optimizer's state
    with PeakMemory(policy.device) as process:
        peak = live_peak(lambda: trainer.update([training.imitation_term(rows)]))
    assert planned.update == pytest.approx(peak, rel=0.1)
    assert process.gib > planned.update / 2**30


@pytest.mark.slow
def test_rollouts_take_what_was_planned():
    config = load_config("smoke", num_parallel=4, max_context=768)
    policy = stages.load_policy(config, None)

    def talk(number: int):
        ids = policy.encode(f"{number}" + " word" * 760)[:760]
        yield Request(ids, "planner", lambda text: False, 4, 0.0, 0, fresh=True)

    peak = live_peak(lambda: list(decode(policy, [talk(i) for i in range(4)], 4, read_tokens=800)))
    planned = estimate_memory(config)
    assert planned.dense + planned.cache == pytest.approx(peak, rel=0.1)


def test_the_papers_profile_fits_a_card_of_24_gib():
    planned = estimate_memory(load_config("paper"), usual_shape(7e9), card=True)
    assert 3.5 < planned.weights / 2**30 < 5, "seven billion weights of four bits, and the embeddings"
    assert planned.training / 2**30 < 22 and planned.rollouts / 2**30 < 22


def test_the_plan_says_memory_in_words(tiny_checkpoint):
    said = in_words(load_config("smoke", checkpoint=tiny_checkpoint))
    assert "GiB on a CUDA card" in said and "guessed" not in said
    assert "guessed from the name" in in_words(load_config("paper"))
    assert "unknown" in in_words(load_config("smoke", checkpoint="nobody/knows"))
