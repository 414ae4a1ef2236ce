"""Every formula against values worked out by hand."""

import math

import pytest
import torch

from retroact_lib import losses
from retroact_lib.trajectories import reflector_reward

LOGP = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -4.0, -9.0]])
MASK = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])


def test_imitation_loss_is_the_mean_over_agent_tokens_of_each_example():
    # example 1: (1 + 3) / 2 = 2; example 2: (0.5 + 4) / 2 = 2.25
    assert losses.imitation_loss(LOGP, MASK).item() == pytest.approx((2 + 2.25) / 2)


def test_by_token_a_long_example_counts_more():
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    # by example: (6 / 3 + 0.5) / 2; by token: (1 + 2 + 3 + 0.5) / 4
    assert losses.imitation_loss(LOGP, mask).item() == pytest.approx(1.25)
    assert losses.imitation_loss_by_token(LOGP, mask).item() == pytest.approx(6.5 / 4)


def test_rejection_sampling_asks_neither_the_ratio_nor_the_reward():
    behaviour, reward = LOGP - torch.rand(2, 3), torch.tensor([0.2, 3.0])
    loss = losses.likelihood_loss(LOGP, behaviour, reward, MASK, eps=0.3)
    assert loss.item() == losses.imitation_loss(LOGP, MASK).item()


def test_truncated_loss_by_hand():
    behaviour = LOGP - torch.tensor([[math.log(2.0), 5.0, math.log(0.5)], [math.log(1.1), 0.0, 5.0]])
    reward = torch.tensor([1.0, 0.5])
    # weights clipped to [0.7, 1.3]: 1.3 and 0.7; 1.1 and 1
    first = -(1.3 * -1.0 + 0.7 * -3.0) / 2
    second = -0.5 * (1.1 * -0.5 + 1.0 * -4.0) / 2
    loss = losses.truncated_loss(LOGP, behaviour, reward, MASK, eps=0.3)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_truncated_weight_carries_no_gradient():
    logp = LOGP.clone().requires_grad_()
    losses.truncated_loss(logp, LOGP - 0.1, torch.ones(2), MASK, eps=0.3).backward()
    # d/dlogp of -(w logp) / 2 tokens / 2 examples with w = e^0.1 held fixed
    assert logp.grad[0, 0].item() == pytest.approx(-math.exp(0.1) / 4, rel=1e-6)


@pytest.mark.parametrize(
    "rho, reward, expected",
    [(1.1, 1.0, 1.1), (2.0, 1.0, 1.3), (0.5, 1.0, 0.5), (0.5, -1.0, -0.7), (2.0, -1.0, -2.0)],
)
def test_ppo_takes_the_smaller_surrogate(rho, reward, expected):
    logp = torch.full((1, 1), -1.0)
    loss = losses.ppo_loss(logp, logp - math.log(rho), torch.tensor([reward]), torch.ones(1, 1), eps=0.3)
    assert loss.item() == pytest.approx(-expected, rel=1e-6)


def test_ppo_stops_pushing_a_failed_action_where_truncated_does_not():
    behaviour = torch.full((1, 1), -1.0)
    far_below = torch.full((1, 1), -4.0, requires_grad=True)
    for name, objective in losses.OBJECTIVES.items():
        far_below.grad = None
        objective(far_below, behaviour, torch.tensor([-1.0]), torch.ones(1, 1), 0.3).backward()
        assert (far_below.grad.item() == 0) == (name == "ppo")


@pytest.mark.parametrize("objective", losses.OBJECTIVES.values())
def test_masked_tokens_get_exactly_no_gradient(objective):
    logp = LOGP.clone().requires_grad_()
    (objective(logp, LOGP + 0.2, torch.tensor([1.0, -1.0]), MASK, 0.3) + losses.imitation_loss(logp, MASK)).backward()
    assert (logp.grad[MASK == 0] == 0).all()
    assert (logp.grad[MASK == 1] != 0).all()


def test_example_without_agent_token_is_refused():
    with pytest.raises(ValueError, match="no agent token"):
        losses.imitation_loss(LOGP, torch.tensor([[1.0, 0, 0], [0, 0, 0]]))


def test_ratio_metrics_by_hand():
    behaviour = LOGP - torch.tensor([[math.log(2.0), 9.0, 0.0], [0.0, 0.0, 9.0]])
    metrics = losses.ratio_metrics((LOGP - behaviour)[MASK.bool()], eps=0.3)
    assert metrics["ratio_mean"] == pytest.approx(5 / 4)
    assert metrics["ratio_max"] == pytest.approx(2)
    assert metrics["clip_fraction"] == pytest.approx(1 / 4)
    assert metrics["ess"] == pytest.approx(25 / (4 * 7))
    assert metrics["kl"] == pytest.approx(math.log(2) ** 2 / 2 / 4, rel=1e-5)


def test_reflector_reward_pays_more_for_improving_a_partly_right_attempt():
    assert reflector_reward(0.0, 1.0) == pytest.approx(1.0)
    assert reflector_reward(0.5, 1.0) == pytest.approx(0.75)
    assert reflector_reward(0.25, 0.5, c=0.5) == pytest.approx(0.25 * 0.75 / 0.5)
    assert reflector_reward(0.5, 0.5) == 0
    assert reflector_reward(1.0, 0.5) == pytest.approx(-1.0)
