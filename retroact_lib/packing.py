"""Training rows in one line: what they share is computed once.

Every row of an environment begins with the same instruction, and the row of a reflection begins with the whole row of
the trial that it looks back at. So a failed trial and its reflection are one row with two masks, and the beginning
that all rows have in common stands once, with its gradient. The log-probs are those of the rows one by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from retroact_lib.attention import PackedRows


@dataclass(frozen=True)
class Packed:
    """Rows in one line of N tokens, and where the K tokens that are wanted are predicted."""

    ids_N: torch.Tensor
    layout: PackedRows
    predictor_K: torch.Tensor
    """For each wanted token, row by row, the place in the line whose output predicts it."""


def pack(ids_BT: torch.Tensor, wanted_BT: torch.Tensor) -> Packed:
    """Pack rows [B, T] of which the tokens in `wanted_BT` (boolean, never at position 0) are to be predicted.

    A row is read up to the token before its last wanted one, so what pads it does not matter.
    """
    device, wanted_BT = ids_BT.device, wanted_BT.cpu()
    read_B = (wanted_BT * torch.arange(wanted_BT.shape[1])).amax(1).tolist()
    texts = [ids[:read] for ids, read in zip(ids_BT.tolist(), read_B, strict=True)]
    holders, shared = _overlap(texts)
    line, rests, begin = [], [], {}
    for b in dict.fromkeys(holders):
        line += texts[b] if not line else texts[b][shared:]
        begin[b] = len(line) - len(texts[b])  # so that the token at t > shared of this row stands at begin + t
        rests.append(len(texts[b]) - shared)
    row_K, token_K = wanted_BT.nonzero(as_tuple=True)
    before_K = token_K - 1
    begin_K = torch.tensor([begin[holder] for holder in holders])[row_K]
    predictor_K = torch.where(before_K < shared, before_K, begin_K + before_K)
    return Packed(torch.tensor(line, device=device), PackedRows(shared, rests, device), predictor_K.to(device))


def packed_tokens(rows: Sequence[list[int]]) -> int:
    """Tokens of the line that these rows make."""
    holders, shared = _overlap(rows)
    return shared + sum(len(rows[b]) - shared for b in set(holders))


def _overlap(texts: Sequence[list[int]]) -> tuple[list[int], int]:
    """For each text the one that holds it: a longer one that begins with it, or itself. And what all holders share.

    With a single holder nothing is shared.
    """
    order = sorted(range(len(texts)), key=lambda i: texts[i])  # a beginning stands right before what it begins
    holders = list(range(len(texts)))
    for i, following in reversed(list(itertools.pairwise(order))):
        if texts[following][: len(texts[i])] == texts[i]:
            holders[i] = holders[following]
    first, last = texts[holders[order[0]]], texts[order[-1]]
    if len(set(holders)) == 1:
        return holders, 0
    return holders, next(i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
