"""Figures carry the numbers they are given; the page's copy follows the page's colours."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from atbench.reporting import example_grid, plots
from atbench.reporting.figure_format import COLUMN, canvas, line
from atbench.reporting.plots import Curve

pytestmark = pytest.mark.usefixtures("drawn")


def curve(label: str) -> Curve:
    return Curve(label, (0.0, 1.0, 10.0), (0.9, 0.7, 0.5), (0.85, 0.6, 0.4), (0.95, 0.8, 0.6))


def history(shift: float, epochs: int = 4) -> list[dict]:
    return [
        {"epoch": e, "train": {"loss": 1 / e}, "val": {"clean": 0.9, "pgd": 0.3 + shift, "n": 100},
         "fit": {"pgd": 0.4, "n": 100}, "gap": 0.1 - shift, "best": e == 2}
        for e in range(1, epochs + 1)
    ]  # fmt: skip


def lines(axis) -> list[np.ndarray]:
    return [np.asarray(line.get_ydata(), float) for line in axis.get_lines()]


@pytest.mark.parametrize("draw", [plots.draw_accuracy_by_steps, plots.draw_accuracy_by_eps])
def test_svg_is_an_element_of_a_page(draw) -> None:
    drawing = draw([curve("best"), curve("last & <first>")])
    ElementTree.fromstring(drawing.svg)
    assert drawing.svg.startswith("<svg") and "currentColor" in drawing.svg and "#1b1e23" not in drawing.svg
    assert "purl.org" not in drawing.svg and "last &amp; &lt;first&gt;" in drawing.svg
    assert drawing.png.startswith(b"\x89PNG")
    again = draw([curve("best"), curve("last & <first>")])
    assert again.png == drawing.png, "whatever was drawn before"
    assert again.svg == drawing.svg and again.file("pdf") == drawing.file("pdf")


def test_names_in_two_figures_of_a_page_do_not_meet() -> None:
    ids = [
        set(re.findall(r'\bid="(.*?)"', d([curve("a")]).svg))
        for d in (plots.draw_accuracy_by_steps, plots.draw_accuracy_by_eps)
    ]
    assert ids[0] and not ids[0] & ids[1]


def test_seeds_are_drawn_as_mean_and_sample_deviation() -> None:
    _, axes = canvas(1, 1, (4, 3))
    runs = [history(0.0), history(0.1), history(0.3)]
    plots._over_epochs(axes[0], runs, "val.pgd", 100.0, "k", "-", "x")
    drawn = lines(axes[0])
    assert len(drawn) == 4  # three thin ones and their mean
    assert drawn[-1] == pytest.approx([100 * np.mean([0.3, 0.4, 0.6])] * 4)
    band = axes[0].collections[0].get_paths()[0].vertices[:, 1]
    spread = 100 * np.std([0.3, 0.4, 0.6], ddof=1)
    assert (band.min(), band.max()) == pytest.approx((drawn[-1][0] - spread, drawn[-1][0] + spread))


def test_a_mean_covers_only_epochs_that_all_seeds_have() -> None:
    _, axes = canvas(1, 1, (4, 3))
    plots._over_epochs(axes[0], [history(0.0, 4), history(0.1, 2)], "gap", 1.0, "k", "-", None)
    assert len(lines(axes[0])[-1]) == 2


def test_one_run_has_the_interval_of_its_held_out_figure() -> None:
    _, axes = canvas(1, 1, (4, 3))
    plots._over_epochs(axes[0], [history(0.0)], "val.pgd", 1.0, "k", "-", None)
    band = axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.2189, 0.3958), abs=1e-3)  # Wilson, 30 of 100


def test_radii_of_examples_are_drawn_as_mean_and_spread_between_epochs() -> None:
    rows = [{"epoch": e, "method": {"eps_mean": 0.1 * e, "eps_std": 0.01 * e}} for e in (1, 2, 3)]
    drawing = plots.draw_adapted("eps_mean", {"": rows}, 0.25)
    assert drawing.svg
    (axis,) = drawing.figure.axes
    mean, eps = lines(axis)
    assert mean == pytest.approx([0.1, 0.2, 0.3]) and set(eps) == {0.25}
    band = axis.collections[0].get_paths()[0].vertices
    assert {(x, round(y, 9)) for x, y in band} == {
        (e, round((10 + sign) * 0.01 * e, 9)) for e in (1.0, 2.0, 3.0) for sign in (-1, 1)
    }


def test_missing_values_are_gaps_not_failures() -> None:
    rows = [{"epoch": 1, "train": {"loss": None}}, {"epoch": 2}]
    for name in plots.OVER_EPOCHS:
        assert plots.draw_over_epochs(name, {"a": [rows], "b": [history(0.0), history(0.1)]}).png
    assert plots.draw_over_epochs("training", {"a": [rows]}).png


def test_the_frontier_is_what_no_other_point_beats_in_both() -> None:
    points = [
        plots.Point(name, x, y, y, y) for name, x, y in (("a", 90, 50), ("b", 95, 40), ("c", 92, 40), ("d", 95, 39))
    ]
    assert [point.label for point in plots.frontier(points, cost=False)] == ["b", "a"]
    assert [point.label for point in plots.frontier(points, cost=True)] == ["a"]
    assert "purple" not in plots.draw_points("x", points, "seconds", cost=True).svg


def test_lines_of_a_figure_differ_without_their_colours() -> None:
    """For a grey printer; and no two neighbours share a colour."""
    lines = [line(number) for number in range(10)]
    assert len({each["marker"] for each in lines}) == 10
    assert len({each["color"] for each in lines[:7]}) == 7


def test_a_figure_has_files_for_a_paper() -> None:
    drawing = plots.draw_accuracy_by_steps([curve("best")])
    files = {suffix: drawing.file(suffix) for suffix in drawing.formats}
    assert set(files) == {"png", "svg", "pdf"} and files["pdf"].startswith(b"%PDF")
    ElementTree.fromstring(files["svg"])
    assert b"currentColor" not in files["svg"] and b"#1b1e23" in files["svg"]
    width = float(ElementTree.fromstring(files["svg"]).attrib["width"].removesuffix("pt")) / 72
    assert width == pytest.approx(COLUMN), "as wide as a column, so that 7 points are 7 points"


def test_grid_takes_grey_and_colour_and_no_change_at_all() -> None:
    for channels in (1, 3):
        x = np.random.default_rng(0).random((3, channels, 4, 4), dtype=np.float32)
        names = {
            "label": np.arange(5),
            "shown_index": np.array([4, 0, 2]),
            "shown_clean": np.arange(3),
            "shown_broken": np.arange(3),
        }
        for change in (0.0, 0.1):
            drawing = example_grid.draw_example_grid(
                {**names, "shown_x": x, "shown_adv": np.clip(x + change, 0, 1)}, columns=2
            )
            assert "svg" not in drawing.formats and drawing.png.startswith(b"\x89PNG")


def test_confusions_are_counted_and_coloured_by_class() -> None:
    counts = np.array([[30, 10, 0], [1, 0, 0], [0, 0, 0]])
    drawing = example_grid.draw_confusion("c", counts, ["cat", "dog", "empty"])
    assert drawing.png.startswith(b"\x89PNG")
    (axis,) = drawing.figure.axes
    written = {text.get_position(): text.get_text() for text in axis.texts}
    assert written == {(0.5, 0.5): "30", (1.5, 0.5): "10", (0.5, 1.5): "1"}, (
        "column, row; nothing where there is nothing"
    )
    assert np.allclose(axis.collections[0].get_array(), np.array([[0.75, 0.25, 0], [1, 0, 0], [0, 0, 0]]))


def test_a_reliability_diagram_draws_full_bins_at_their_confidence() -> None:
    bins = [
        {"from": 0.0, "to": 0.5, "confidence": 0.4, "accuracy": 0.25, "low": 0.1, "high": 0.5, "n": 30},
        {"from": 0.5, "to": 1.0, "confidence": None, "accuracy": None, "low": None, "high": None, "n": 0},
    ]
    full = [bins[0], {**bins[1], "confidence": 0.9, "accuracy": 0.8, "low": 0.7, "high": 0.9, "n": 10}]
    diagrams = {"clean": {"ece": 0.1, "bins": full}, "adversarial": {"ece": 0.15, "bins": bins}}
    drawing = example_grid.draw_reliability(diagrams, "r")
    assert "ECE 15.0 points" in drawing.svg
    left, right = drawing.figure.axes
    points = [container[0].get_xydata() for container in left.containers]
    assert points[0] == pytest.approx(np.array([[40, 25], [90, 80]])) and points[1] == pytest.approx(
        np.array([[40, 25]])
    )
    assert [[bar.get_height() for bar in bars] for bars in right.containers] == [[75, 25], [100]]


def test_a_cost_has_few_ticks_that_say_numbers() -> None:
    assert plots.log_ticks([16.7, 139.0]) == [20, 50, 100] and plots.log_ticks([0.3, 5.0]) == [0.5, 1, 2, 5]
    assert len(plots.log_ticks([2.8, 3.4])) < 2, "seconds of two quick runs: the axis is linear"
