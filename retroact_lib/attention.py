"""Who sees whom: one attention function for training rows that share a beginning and for slots that are decoded.

A caller gives the model a four-dimensional mask, which transformers hands to every layer as it is; the mask of
`as_mask` is empty and carries a layout, and the layout says what each query looks at. The model's own forward does the
rest, so that scaling, soft-capping and sliding windows are the model's.

Shapes: B batch, H query heads, G key heads, W queries, S keys, D size of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "retroact"
"""Under which transformers knows `attention`."""
QUERIES_AT_ONCE = (128, 512)
"""On a CPU and on a card: queries of a row that attend together, so that later keys are not computed in vain."""


@dataclass(frozen=True)
class Kernel:
    """How a layer attends: the scale of its scores, their soft cap, and how far back it looks (None: no limit)."""

    scale: float
    softcap: float | None = None
    window: int | None = None

    def __call__(
        self, query_BHWD: torch.Tensor, key_BGSD: torch.Tensor, value_BGSD: torch.Tensor, mask_BXLS: torch.Tensor
    ) -> torch.Tensor:
        """Attention under an additive mask [B, 1, L, S], that of `visible` for H / G heads; returns [B, H, W, D].

        The H / G query heads of a key head stand in line, so that no key is copied. PyTorch's ``enable_gqa`` rounds
        otherwise, which in bfloat16 changes some greedy episodes.
        """
        batch, heads, width, size = query_BHWD.shape
        query_BGLD = query_BHWD.reshape(batch, key_BGSD.shape[1], -1, size)
        if self.softcap:
            scores_BGLS = query_BGLD @ key_BGSD.transpose(2, 3) * (self.scale / self.softcap)
            weight_BGLS = torch.softmax((torch.tanh(scores_BGLS) * self.softcap + mask_BXLS).float(), dim=-1)
            out_BGLD = weight_BGLS.to(value_BGSD.dtype) @ value_BGSD
        else:
            out_BGLD = F.scaled_dot_product_attention(
                query_BGLD, key_BGSD, value_BGSD, attn_mask=mask_BXLS, scale=self.scale
            )
        return out_BGLD.reshape(batch, heads, width, size)

    def by_products(
        self, query_BHWD: torch.Tensor, key_BGSD: torch.Tensor, value_BGSD: torch.Tensor, mask_BXLS: torch.Tensor
    ) -> torch.Tensor:
        """The same by two plain products, which a CPU makes faster where a key has few queries; no gradient needed.

        The keys are the left factor, because oneDNN is slow with a long transposed one.
        """
        (batch, heads, width, size), groups = query_BHWD.shape, key_BGSD.shape[1]
        query_NLD = query_BHWD.reshape(batch * groups, -1, size)  # N = B G
        score_NLS = torch.bmm(key_BGSD.flatten(0, 1), query_NLD.transpose(1, 2)).transpose(1, 2).contiguous()
        score_BGLS = score_NLS.view(batch, groups, *score_NLS.shape[1:]).float().mul_(self.scale)
        if self.softcap:
            score_BGLS.div_(self.softcap).tanh_().mul_(self.softcap)
        weight_BGLS = torch.softmax(score_BGLS.add_(mask_BXLS), dim=-1).to(value_BGSD.dtype)
        out_NLD = torch.bmm(weight_BGLS.flatten(0, 1), value_BGSD.flatten(0, 1))
        return out_NLD.reshape(batch, heads, width, size)


class Layout(Protocol):
    """What each query of a pass looks at."""

    def attend(
        self, kernel: Kernel, query_BHWD: torch.Tensor, key_BGSD: torch.Tensor, value_BGSD: torch.Tensor
    ) -> torch.Tensor:
        """The attention of one layer, [B, H, W, D]."""


def visible(
    query_BW: torch.Tensor, key_S: torch.Tensor, window: int | None, dtype: torch.dtype, heads: int
) -> torch.Tensor:
    """Additive mask of queries and keys at these positions: 0 where a query sees a key, else lowest.

    Returns [B, 1, L, S], the W queries of `heads` heads in line.
    """
    back_BWS = query_BW[:, :, None] - key_S
    unseen_BWS = back_BWS < 0
    if window is not None:
        unseen_BWS |= back_BWS >= window
    mask_BWS = torch.zeros(unseen_BWS.shape, dtype=dtype, device=unseen_BWS.device)
    return mask_BWS.masked_fill_(unseen_BWS, torch.finfo(dtype).min).repeat(1, heads, 1)[:, None]


@dataclass
class PackedRows:
    """Rows in one line [1, N]: their shared beginning of `shared` tokens once, then the rest of each row.

    The rest of a row sees the shared beginning and itself: exactly what the row would see alone.
    """

    shared: int
    rests: list[int]
    """Tokens of each row behind the shared beginning."""
    device: torch.device
    _masks: dict[tuple, torch.Tensor] = field(default_factory=dict)

    def positions(self) -> torch.Tensor:
        """Position of every token in its row, [1, N]."""
        parts = [torch.arange(self.shared), *(self.shared + torch.arange(rest) for rest in self.rests)]
        return torch.cat(parts)[None].to(self.device)

    def attend(self, kernel, query_BHWD, key_BGSD, value_BGSD):
        queries, keys, values = (x.split([self.shared, *self.rests], dim=2) for x in (query_BHWD, key_BGSD, value_BGSD))
        seen_BHWD = []
        for row, (query, key, value) in enumerate(zip(queries, keys, values, strict=True)):
            if row and self.shared:
                key, value = torch.cat([keys[0], key], dim=2), torch.cat([values[0], value], dim=2)
            if not query.shape[2]:
                continue  # there is no shared beginning
            last = key.shape[2] - query.shape[2]
            for part in query.split(QUERIES_AT_ONCE[self.device.type != "cpu"], dim=2):
                last += part.shape[2]  # no query of this part looks at a later key
                near_key, near_value = key[:, :, :last], value[:, :, :last]
                mask = self._mask(part, near_key, kernel.window)
                seen_BHWD.append(kernel(part, near_key, near_value, mask))
        return torch.cat(seen_BHWD, dim=2)

    def _mask(self, query_BHWD: torch.Tensor, key_BGSD: torch.Tensor, window: int | None) -> torch.Tensor:
        """The mask of the last queries of these keys, made once for all layers."""
        queries, keys, heads = query_BHWD.shape[2], key_BGSD.shape[2], query_BHWD.shape[1] // key_BGSD.shape[1]
        window = window if window is not None and window < keys else None
        name = (queries, keys, window, heads)
        if name not in self._masks:
            key_S = torch.arange(keys, device=self.device)
            self._masks[name] = visible(key_S[None, keys - queries :], key_S, window, query_BHWD.dtype, heads)
        return self._masks[name]


def as_mask(layout: Layout, device: torch.device) -> torch.Tensor:
    """The layout in the shape of a mask that transformers passes on. Nothing can be computed with it by mistake."""
    mask = torch.empty(1, 1, 0, 0, device=device)
    mask.attention_layout = layout  # type: ignore[attr-defined]
    return mask


def attention(
    module: torch.nn.Module,
    query_BHWD: torch.Tensor,
    key_BGSD: torch.Tensor,
    value_BGSD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: by the mask's layout, or with an ordinary mask as transformers does it.

    By layout there is no dropout of attention weights: adapters are trained, which have a dropout of their own.
    Returns [B, W, H, D] and no weights.
    """
    if s_aux is not None:
        raise ValueError("This model has attention sinks, which this library does not know.")
    layout = getattr(attention_mask, "attention_layout", None)
    if layout is None and not softcap:
        return sdpa_attention_forward(
            module, query_BHWD, key_BGSD, value_BGSD, attention_mask, scaling=scaling, **kwargs
        )
    kernel = Kernel(query_BHWD.shape[-1] ** -0.5 if scaling is None else scaling, softcap, sliding_window)
    dtype = value_BGSD.dtype  # rotary embeddings leave queries and keys in the residual stream's
    query_BHWD, key_BGSD = query_BHWD.to(dtype), key_BGSD.to(dtype)
    if layout is None:
        out_BHWD = kernel(query_BHWD, key_BGSD, value_BGSD, _additive(attention_mask, query_BHWD, key_BGSD))
    else:
        out_BHWD = layout.attend(kernel, query_BHWD, key_BGSD, value_BGSD)
    return out_BHWD.transpose(1, 2).contiguous(), None


def _additive(mask: torch.Tensor | None, query_BHWD: torch.Tensor, key_BGSD: torch.Tensor) -> torch.Tensor:
    """transformers' mask as an additive one [B, 1, L, S]; without one a text is causal."""
    (_, heads, width, _), (_, groups, keys, _) = query_BHWD.shape, key_BGSD.shape
    if mask is None:
        key_S = torch.arange(keys, device=query_BHWD.device)
        return visible(key_S[None, keys - width :], key_S, None, query_BHWD.dtype, heads // groups)
    if mask.dtype == torch.bool:
        zeros = torch.zeros(mask.shape, dtype=query_BHWD.dtype, device=mask.device)
        mask = zeros.masked_fill_(~mask, torch.finfo(query_BHWD.dtype).min)
    return mask.repeat(1, 1, heads // groups, 1)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
