"""The claims of the study (docs/claims.md), settled before the test split is played, and what the outcomes say of each.

claims.judge(tables.read(config, "outcomes-0*").replace({"mode": {"retry": "sampled"}}))
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from retroact_lib import evaluation


class Claim(NamedTuple):
    """That one arm solves more test tasks than another: in the ``greedy`` trial, or by the last ``sampled`` one."""

    arm: str
    other: str
    mode: str


CLAIMS = (
    Claim("retroact", "sft", "greedy"),
    Claim("retroact", "sft", "sampled"),
    Claim("retroact", "longer_sft", "greedy"),
    Claim("retroact", "longer_sft", "sampled"),
    Claim("retroact", "continued_sft", "greedy"),
    Claim("retroact", "continued_sft", "sampled"),
    Claim("retroact", "plain_retry", "sampled"),
    Claim("retroact", "planner_only", "sampled"),
    Claim("retroact", "reflector_only", "sampled"),
    Claim("retroact", "no_il", "greedy"),
)


def judge(outcomes: pd.DataFrame, resamples: int = 10_000) -> pd.DataFrame:
    """Every claim whose arms were run, with its paired difference on the test split and its interval.

    `p_holm` is the p-value corrected for the claims in the table, and `detectable` the smallest difference that such a
    test would have found (`evaluation.compare`). The trials of plain retry must count as ``sampled``.
    """
    test, parts = evaluation.last_trials(outcomes[outcomes["split"] == "test"]), []
    for claim in CLAIMS:
        found = test[(test["mode"] == claim.mode) & test["arm"].isin((claim.arm, claim.other))]
        parts.append(evaluation.compare(found, claim.arm, claim.other, resamples=resamples))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(p_holm=evaluation.holm(table["p"])) if len(table) else table
