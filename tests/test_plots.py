"""Figures: every value can be read, the full method stands out, and what bars cannot tell is written below them."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from retroact_lib import envs, plots


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


def contrast(one, other="white"):
    """Between two colours, as WCAG defines it: from 1 to 21, and 4.5 can be read."""
    linear = [
        np.where((c := np.array(to_rgb(x))) <= 0.04, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for x in (one, other)
    ]
    low, high = sorted(float(rgb @ (0.2126, 0.7152, 0.0722)) for rgb in linear)
    return (high + 0.05) / (low + 0.05)


def test_each_arm_has_a_colour_of_its_own():
    colours = [colour for _, colour in plots.ARMS.values()]
    assert len(set(colours)) == len(colours) == len({label for label, _ in plots.ARMS.values()})


def test_every_bar_of_the_arms_has_its_number_beside_it(summary, ax):
    plots.arms_compared(summary.query("mode == 'greedy'"), ax)
    assert [text.get_text() for text in ax.texts] == ["0", "10", "30", "40"]
    for text, bar in zip(ax.texts, ax.patches, strict=True):
        assert text.get_position()[0] > bar.get_width(), "a number lies on its bar"
        assert contrast(text.get_color()) > 7, "a number is too light for a white page"
    assert "n = 64, seeds: 3" in ax.get_xlabel()


def test_a_number_beside_a_full_bar_stays_inside_the_axes(summary, ax):
    plots.arms_compared(summary.query("mode == 'greedy'").assign(success=1.0, success_low=1.0, success_high=1.0), ax)
    ax.figure.canvas.draw()
    assert all(text.get_window_extent().x1 < ax.get_window_extent().x1 for text in ax.texts)


def test_the_sampled_base_model_is_named_reflexion(summary, ax):
    plots.arms_compared(summary.query("mode == 'sampled' and trial == 2"), ax)
    assert "Base model (Reflexion)" in [text.get_text() for text in ax.get_yticklabels()]
    ax.clear()
    plots.arms_compared(summary.query("mode == 'greedy'"), ax)
    assert "Base model" in [text.get_text() for text in ax.get_yticklabels()]


def test_lines_by_trial_have_their_arm_s_colour_and_n(summary, ax):
    plots.success_by_trial(summary.query("mode == 'sampled'"), ax)
    arms = ("base", "sft", "retroact")
    assert [line.get_color() for line in ax.lines] == [plots.ARMS[arm][1] for arm in arms]
    assert "n = 64, seeds: 3" in ax.get_xlabel() and "%" in ax.get_ylabel()


def test_the_headline_shows_both_modes_and_marks_the_full_method(summary, ax):
    plots.headline(summary, ax)
    assert [text.get_text() for text in ax.texts] == ["0", "30", "40", "0", "40", "90"]
    greedy, sampled = (text.get_text() for text in ax.get_legend().get_texts())
    assert (
        greedy == "greedy, first trial" and sampled.startswith("sampled, by the last trial") and "Reflexion" in sampled
    )
    names = {text.get_text(): text.get_fontweight() for text in ax.get_xticklabels()}
    assert names["RetroAct"] == "bold" and names["SFT (imitation)"] != "bold"
    heights = [text.get_position()[1] for text in ax.texts]
    tops = [100 * high for mode in ("greedy", "sampled") for high in _last(summary, mode)["success_high"]]
    assert all(height > top for height, top in zip(heights, tops, strict=True)), "a number lies on its interval"
    assert "last trial: 2; n = 64, seeds: 3" in ax.get_xlabel()


def _last(summary, mode):
    rows = summary[(summary["mode"] == mode) & (summary["arm"] != "unmasked")]
    return rows[rows["trial"] == rows["trial"].max()]


def test_a_figure_has_one_legend_and_says_what_its_bars_cannot_tell(summary):
    figure, axes = plt.subplots(1, 2, layout="constrained")
    for panel in axes:
        plots.headline(summary, panel)
    plots.finish(figure)
    assert len(figure.legends) == 1 and not any(panel.get_legend() for panel in axes)
    assert len(figure.legends[0].get_texts()) == 2
    figure.canvas.draw()
    assert all(figure.legends[0].get_window_extent().y0 >= panel.get_window_extent().y1 for panel in axes)
    assert "with one seed over tasks alone" in figure.get_supxlabel()
    plt.close(figure)


@pytest.mark.parametrize("name", sorted(envs.ENVIRONMENTS))
def test_environments_have_a_title(name):
    assert envs.env_class(name).title and envs.env_class(name).title != name


def test_families_are_named_with_their_number_from_the_top(ax):
    rows = [
        dict(arm=arm, family=family, n=8, seeds=1, success=0.5, success_low=0.2, success_high=0.8)
        for arm in ("sft", "retroact")
        for family in ("count", "count_filter")
    ]
    plots.success_by_family(pd.DataFrame(rows), ax)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["count filter (n = 8)", "count (n = 8)"]
    assert "seeds: 1" in ax.get_xlabel()


def test_the_learning_curve_prints_every_share_so_that_it_can_be_read():
    shares = [0.0, 0.3, 0.6, 0.8, 0.88, 0.9, 1.0]
    rows = [
        dict(epoch=epoch, family=family, n=4, seeds=1, success=share, success_low=share, success_high=share)
        for family in ("count", "filter")
        for epoch, share in enumerate(shares)
    ]
    families = pd.DataFrame(rows)
    figure, axes = plt.subplots(1, 2)
    plots.learning_curve(families, families[families["family"] == "count"], axes)
    assert [text.get_text() for text in axes[1].texts] == [f"{100 * share:.0f}" for share in shares] * 2
    behind = axes[1].images[0].to_rgba(axes[1].images[0].get_array())
    for text in axes[1].texts:
        column, row = text.get_position()
        assert contrast(text.get_color(), behind[row, column]) > 4.5, "a number cannot be read on its field"
    assert axes[0].lines[0].get_color() == plots.ARMS["sft"][1]
    assert "n = 4, seeds: 1" in axes[0].get_xlabel() and "%" in axes[0].get_ylabel()
    plt.close(figure)


def test_training_has_the_colour_of_the_arm_that_is_trained():
    figure, axes = plt.subplots(1, 4)
    updates = [dict(update=i, il_loss=1.0, ratio_mean=1.0, ratio_max=2.0, clip_fraction=0.1, kl=0.1) for i in (1, 2)]
    plots.training_curve(pd.DataFrame(updates), axes[0], {"il_loss": "imitation loss"}, "nats per agent token")
    plots.importance_ratios(pd.DataFrame(updates), axes[1:], eps=0.3)
    assert {line.get_color() for line in axes[0].lines} == {plots.ARMS["sft"][1]}
    assert {line.get_color() for ax in axes[1:] for line in ax.lines} == {plots.ARMS["retroact"][1]}
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in axes)
    plt.close(figure)


def test_a_run_without_updates_draws_empty_axes():
    figure, axes = plt.subplots(1, 3)
    plots.importance_ratios(pd.DataFrame([{"update": 0, "round": 0}]), axes, eps=0.3)
    assert not any(line for ax in axes for line in ax.lines)
    plt.close(figure)


def test_rounds_show_success_the_gain_of_reflections_and_the_trials_played():
    figure, axes = plt.subplots(1, 2)
    greedy = pd.DataFrame({"round": [0, 1, 2], "n": 40, "seeds": 2, "success": [0.2, 0.3, 0.5]})
    greedy = greedy.assign(success_low=greedy["success"] - 0.1, success_high=greedy["success"] + 0.1)
    gains = pd.DataFrame({"round": [0, 1, 2], "difference": [-0.1, 0.0, 0.1], "low": -0.2, "high": 0.2})
    plots.rounds(greedy, gains, pd.Series([0, 150, 290]), axes)
    assert [list(ax.lines[0].get_ydata()) for ax in axes] == [[20, 30, 50], [-10, 0, 10]]
    assert "n = 40, seeds: 2" in axes[0].get_xlabel() and "points" in axes[1].get_ylabel()
    figure.canvas.draw()
    above = axes[0].child_axes[0]
    assert [text.get_text() for text in above.get_xticklabels()] == ["0", "150", "290"]
    plt.close(figure)
