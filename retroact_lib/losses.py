"""The objectives, one pure function each. Shapes: B examples, T tokens; `mask_BT` is 1 where the agent wrote the token.

Log-probs are float32 natural logs. Every mean over tokens divides by the number of agent tokens of its own example,
so neither a longer prompt nor padding changes it. An example without an agent token raises ValueError.
"""

from __future__ import annotations

import torch


def agent_mean(value_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Mean over each example's agent tokens: sum_t m_t v_t / sum_t m_t. Returns [B]."""
    count_B = mask_BT.sum(1)
    if (count_B == 0).any():
        raise ValueError("An example has no agent token; its mask is 0 everywhere.")
    return (value_BT * mask_BT).sum(1) / count_B


def imitation_loss(logp_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """L_IL = - E[ sum_t m_t log pi_theta(y_t | x, y_<t) / sum_t m_t ], a scalar: every example counts alike."""
    return -agent_mean(logp_BT, mask_BT).mean()


def imitation_loss_by_token(logp_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """L_IL with every agent token of the batch counting alike, in whichever example it stands, a scalar."""
    return agent_mean(-logp_BT.reshape(1, -1), mask_BT.reshape(1, -1)).mean()


IMITATION = {"example": imitation_loss, "token": imitation_loss_by_token}
"""`SFTConfig.il_weighting` -> L_IL."""


def truncated_loss(
    logp_BT: torch.Tensor, behaviour_logp_BT: torch.Tensor, reward_B: torch.Tensor, mask_BT: torch.Tensor, eps: float
) -> torch.Tensor:
    """Truncated importance-weighted policy gradient, the authors' L_PG, a scalar.

    L_PG = - E[ sum_t m_t sg(clip(rho_t, 1 - eps, 1 + eps)) r log pi_theta(y_t | ...) / sum_t m_t ]

    The weight never falls below 1 - eps, so a negative reward pushes without end: see `ppo_loss`.
    """
    weight_BT = ratio(logp_BT, behaviour_logp_BT, mask_BT).clamp(1 - eps, 1 + eps).detach()
    return -(reward_B * agent_mean(weight_BT * logp_BT, mask_BT)).mean()


def ppo_loss(
    logp_BT: torch.Tensor, behaviour_logp_BT: torch.Tensor, reward_B: torch.Tensor, mask_BT: torch.Tensor, eps: float
) -> torch.Tensor:
    """Clipped surrogate (Schulman et al. 2017) with the reward as advantage, a scalar.

    L_PPO = - E[ sum_t m_t min(rho_t r, clip(rho_t, 1 - eps, 1 + eps) r) / sum_t m_t ]
    """
    rho_BT = ratio(logp_BT, behaviour_logp_BT, mask_BT)
    reward_BT = reward_B[:, None].expand_as(rho_BT)
    surrogate_BT = torch.minimum(rho_BT * reward_BT, rho_BT.clamp(1 - eps, 1 + eps) * reward_BT)
    return -agent_mean(surrogate_BT, mask_BT).mean()


def likelihood_loss(
    logp_BT: torch.Tensor, behaviour_logp_BT: torch.Tensor, reward_B: torch.Tensor, mask_BT: torch.Tensor, eps: float
) -> torch.Tensor:
    """Rejection sampling: L_IL on the policy's own successes, a scalar; neither ratio nor reward counts.

    Which examples are successes is settled before (`examples.successes`). Source: Zelikman et al. 2022 (STaR).
    """
    return imitation_loss(logp_BT, mask_BT)


OBJECTIVES = {"truncated": truncated_loss, "ppo": ppo_loss, "likelihood": likelihood_loss}
"""`RLConfig.objective` -> the loss of stage 2's own examples."""


def ratio(logp_BT: torch.Tensor, behaviour_logp_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Importance ratio rho_t = pi_theta / pi_old per token, [B, T]; 1 outside the mask."""
    return torch.exp((logp_BT - behaviour_logp_BT) * mask_BT)


@torch.no_grad()
def ratio_metrics(logratio_N: torch.Tensor, eps: float) -> dict[str, float]:
    """What the log says of the importance ratios of an update; `logratio_N` is log rho of its N agent tokens.

    `ratio_tokens`: N; `ratio_mean`, `ratio_max`; `clip_fraction`: share outside [1 - eps, 1 + eps]; `ess`: effective
    sample size (sum rho)^2 / (N sum rho^2) in (0, 1]; `kl`: estimate of KL(pi_old || pi_theta) per token, mean of
    (log rho)^2 / 2 (Schulman 2020, "k2"; in "k3" a single large ratio outweighs all other tokens).
    """
    rho_N = logratio_N.double().exp()
    return {
        "ratio_tokens": len(logratio_N),
        "ratio_mean": float(rho_N.mean()),
        "ratio_max": float(rho_N.max()),
        "clip_fraction": float(((rho_N - 1).abs() > eps).double().mean()),
        "ess": float(rho_N.sum() ** 2 / (len(rho_N) * (rho_N**2).sum())),
        "kl": float((logratio_N.double() ** 2 / 2).mean()),
    }
