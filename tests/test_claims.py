"""The claims of the study against outcomes whose verdict is known."""

import pandas as pd
import pytest

from retroact_lib import claims, plots
from retroact_lib.config import ABLATIONS


def outcomes(arm, solved, mode="greedy", trial=1, split="test", seeds=(0, 1, 2)):
    """The first `solved` of 60 tasks are solved, in every seed."""
    rows = [dict(task=str(i), seed=seed, success=int(i < solved)) for seed in seeds for i in range(60)]
    return pd.DataFrame(rows).assign(arm=arm, split=split, mode=mode, trial=trial)


def test_a_claim_is_between_arms_that_there_are():
    arms = {"retroact", "sft", *ABLATIONS}
    assert {claim.arm for claim in claims.CLAIMS} == {"retroact"} and len(set(claims.CLAIMS)) == len(claims.CLAIMS)
    assert {claim.other for claim in claims.CLAIMS} <= arms & set(plots.ARMS)


def test_claims_are_judged_on_the_test_split_at_the_last_trial_and_corrected_together():
    parts = [outcomes("retroact", 40), outcomes("sft", 20), outcomes("retroact", 0, split="validation")]
    for trial, (ours, plain) in enumerate([(10, 30), (30, 29)], 1):
        parts += [outcomes(arm, n, "sampled", trial) for arm, n in (("retroact", ours), ("plain_retry", plain))]
    found = claims.judge(pd.concat(parts, ignore_index=True)).set_index(["other", "mode"])
    assert list(found.index) == [("sft", "greedy"), ("plain_retry", "sampled")], "arms that were not run claim nothing"
    sure, unsure = found.loc[("sft", "greedy")], found.loc[("plain_retry", "sampled")]
    assert (sure["n"], sure["seeds"]) == (60, 3) and sure["difference"] == pytest.approx(1 / 3) and sure["low"] > 0
    assert sure["p_holm"] == pytest.approx(2 * sure["p"]) and sure["p_holm"] < 0.01 and 0 < sure["detectable"] < 0.2
    assert unsure["difference"] == pytest.approx(1 / 60) and unsure["p_holm"] > 0.05


def test_without_an_arm_to_compare_there_is_no_claim():
    assert claims.judge(outcomes("retroact", 3)).empty
