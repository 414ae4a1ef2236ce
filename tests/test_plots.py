"""Figures: every value can be read, the full method stands out, and what bars cannot tell is written below them."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from retroact_lib import plots


@pytest.fixture
def summary():
    rows = []
    for arm, greedy, last in (("base", 0.0, 0.0), ("sft", 0.3, 0.4), ("retroact", 0.4, 0.9), ("unmasked", 0.1, 0.2)):
        for mode, trial, success in (("greedy", 1, greedy), ("sampled", 1, greedy), ("sampled", 2, last)):
            ends = {"success_low": max(success - 0.1, 0), "success_high": min(success + 0.1, 1) if success else 0.0}
            rows.append(dict(arm=arm, split="test", mode=mode, trial=trial, n=64, seeds=3, success=success, **ends))
    return pd.DataFrame(rows)


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def luminance(colour):
    return sum(share * part for share, part in zip((0.3, 0.6, 0.1), to_rgb(colour), strict=True))


def test_each_arm_has_a_colour_of_its_own():
    colours = [colour for _, colour in plots.ARMS.values()]
    assert len(set(colours)) == len(colours) == len({label for label, _ in plots.ARMS.values()})


def test_every_bar_of_the_arms_has_its_number_beside_it(summary, ax):
    plots.arms_compared(summary.query("mode == 'greedy'"), ax)
    assert [text.get_text() for text in ax.texts] == ["0", "10", "30", "40"]
    for text, bar in zip(ax.texts, ax.patches, strict=True):
        assert text.get_position()[0] > bar.get_width(), "a number lies on its bar"
        assert luminance(text.get_color()) < 0.2, "a number is too light for a white page"
    assert "n = 64, seeds: 3" in ax.get_xlabel()


def test_the_headline_shows_both_modes_and_marks_the_full_method(summary, ax):
    plots.headline(summary, ax)
    assert [text.get_text() for text in ax.texts] == ["0", "30", "40", "0", "40", "90"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["greedy, first trial", "sampled, last trial"]
    names = {text.get_text(): text.get_fontweight() for text in ax.get_xticklabels()}
    assert names["RetroAct"] == "bold" and names["SFT (imitation)"] != "bold"
    heights = [text.get_position()[1] for text in ax.texts]
    tops = [100 * high for mode in ("greedy", "sampled") for high in _last(summary, mode)["success_high"]]
    assert all(height > top for height, top in zip(heights, tops, strict=True)), "a number lies on its interval"
    assert "by trial 2; n = 64, seeds: 3" in ax.get_xlabel()


def _last(summary, mode):
    rows = summary[(summary["mode"] == mode) & (summary["arm"] != "unmasked")]
    return rows[rows["trial"] == rows["trial"].max()]


def test_the_caution_stands_below_the_figure(ax):
    plots.caution(ax.figure)
    assert "not over seeds" in ax.figure.get_supxlabel()


def test_families_are_named_with_their_number_from_the_top(ax):
    rows = [
        dict(arm=arm, family=family, n=8, seeds=1, success=0.5, success_low=0.2, success_high=0.8)
        for arm in ("sft", "retroact")
        for family in ("count", "filter")
    ]
    plots.success_by_family(pd.DataFrame(rows), ax)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["filter (n = 8)", "count (n = 8)"]
    assert "seeds: 1" in ax.get_xlabel()


def test_a_run_without_updates_draws_empty_axes():
    figure, axes = plt.subplots(1, 3)
    plots.importance_ratios(pd.DataFrame([{"update": 0, "round": 0}]), axes, eps=0.3)
    assert not any(line for ax in axes for line in ax.lines)
    plt.close(figure)
