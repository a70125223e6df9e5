"""What each picture holds: the numbers on the axes, the labels, and nothing outside them."""

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba

from stabilitykit import plots
from stabilitykit.descent import descend


@pytest.fixture
def ax():
    before = dict(mpl.rcParams)
    figure, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    yield ax
    figure.canvas.draw()  # what cannot be rendered fails here
    assert plt.get_fignums() == [figure.number]
    plt.close(figure)
    assert dict(mpl.rcParams) == before


def bowl(v):
    return 10 * v[..., 0] ** 2 + v[..., 1] ** 2


def names(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def bars(ax):
    """Bottoms and tops of the error bars."""
    segments = np.array(ax.containers[0].lines[2][0].get_segments())
    return segments[:, 0, 1], segments[:, 1, 1]


def test_prediction_is_a_line_in_the_text_colour(ax):
    with mpl.rc_context({"text.color": "#123456"}):
        assert plots.prediction(ax, [1, 2, 3], torch.tensor([4.0, 5.0, 6.0]), "law") is ax
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xydata(), [[1, 4], [2, 5], [3, 6]])
    assert line.get_color() == "#123456"
    assert names(ax) == ["law"]
    assert not ax.get_legend().get_frame_on()


def test_styles_may_use_short_names(ax):
    plots.prediction(ax, [1, 2], [1, 2], color="C2", lw=3, ls="--")
    plots.measurement(ax, [1, 2], np.ones((3, 2)), ms=7)
    assert (ax.lines[0].get_linewidth(), ax.lines[0].get_linestyle()) == (3, "--")
    assert ax.lines[1].get_markersize() == 7


def test_measurement_shows_the_mean_and_two_standard_errors(ax):
    samples = np.random.default_rng(0).normal([1, 20], [1, 5], (50, 2))
    assert plots.measurement(ax, [3, 4], samples, "runs", color="C1") is ax
    middle, error = samples.mean(0), 2 * samples.std(0, ddof=1) / 50**0.5
    np.testing.assert_allclose(ax.lines[0].get_xydata(), np.transpose([[3, 4], middle]))
    np.testing.assert_allclose(bars(ax), [middle - error, middle + error])
    assert names(ax) == ["runs (50 seeds)"]
    assert to_rgba(ax.lines[0].get_color()) == to_rgba("C1")


@pytest.mark.parametrize(
    ("spread", "low", "high"),
    [
        ("std", lambda s: s.mean(0) - s.std(0, ddof=1), lambda s: s.mean(0) + s.std(0, ddof=1)),
        ((5, 95), lambda s: np.percentile(s, 5, 0), lambda s: np.percentile(s, 95, 0)),
    ],
)
def test_measurement_with_another_spread(ax, spread, low, high):
    samples = np.random.default_rng(0).normal(size=(50, 3))
    plots.measurement(ax, [1, 2, 3], samples, spread=spread)
    np.testing.assert_allclose(bars(ax), [low(samples), high(samples)])


def test_measurement_leaves_out_what_is_not_finite(ax):
    samples = [[1.0, np.nan, np.inf], [3.0, np.nan, 5.0], [8.0, np.inf, 7.0]]
    plots.measurement(ax, [1, 2, 3], samples, center="median")
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [3, np.nan, 6])


def test_a_single_seed_is_singular(ax):
    plots.measurement(ax, [1, 2], [[1, 2]])
    assert names(ax) == ["measurement (1 seed)"]


@pytest.mark.parametrize(("scale", "expected"), [(1.0, "linear"), (0.5, "log"), (0.0, "linear")])
def test_profile_counts_layers_from_one_and_chooses_its_axis(ax, scale, expected):
    predicted = scale ** np.arange(60)
    assert plots.profile(ax, predicted, np.outer([0.9, 1, 1.1], predicted), ylabel="q") is ax
    line, points = ax.lines[:2]
    np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 61))
    np.testing.assert_array_equal(points.get_xdata(), np.arange(1, 61, 2))
    assert (ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == (expected, "layer", "q")
    assert names(ax) == ["predicted", "measured (3 seeds)"]


def test_profile_without_a_prediction_on_a_chosen_axis(ax):
    plots.profile(ax, None, np.ones((2, 4)), log=True)
    assert ax.get_yscale() == "log"
    assert names(ax) == ["measured (2 seeds)"]


def test_violins_have_medians_and_names(ax):
    groups = {
        "first": np.arange(9.0),
        "same": np.ones(5),
        "torch": torch.nn.Parameter(torch.tensor([[1.0, 3.0], [2.0, np.nan]])),
    }
    assert plots.violins(ax, groups, ylabel="weight") is ax
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [4, 1, 2])
    assert [label.get_text() for label in ax.get_xticklabels()] == list(groups)
    assert ax.get_ylabel() == "weight"


def test_contours_are_those_of_the_function(ax):
    assert plots.contours(ax, bowl, (-2, 2), (-5, 5), levels=[4.0]) is ax
    (vertices,) = (path.vertices for path in ax.collections[0].get_paths())
    heights = bowl(torch.tensor(vertices))
    np.testing.assert_allclose(heights, 4, rtol=2e-2)  # a grid of 200 points, joined by lines
    assert (ax.get_xlim(), ax.get_ylim()) == ((-2, 2), (-5, 5))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$x$", "$y$")


def test_contours_of_a_quadratic_are_evenly_apart(ax):
    plots.contours(ax, bowl, (-2, 2), (-2, 2), levels=5)
    radii = np.sqrt(ax.collections[0].levels)
    np.testing.assert_allclose(np.diff(radii), radii[0], rtol=0.01)


def test_a_path_shows_its_points_start_and_name(ax):
    path = descend(bowl, [1.5, 4], "gd", lr=0.04, steps=6)
    plots.contours(ax, bowl, (-2, 2), (-5, 5), paths={"Path": path, "points": path.points[:2]})
    line, start = ax.lines[:2]
    np.testing.assert_array_equal(line.get_xydata(), path.points)
    np.testing.assert_array_equal(start.get_xydata(), [[1.5, 4]])
    assert names(ax) == ["Path", "points"]
    assert len(ax.lines) == 4  # and no cross


def test_a_path_that_leaves_has_a_cross_on_the_frame(ax):
    path = np.array([[0.0, 0.0], [1.0, 1.0], [3.0, 2.0]])
    plots.contours(ax, bowl, (-2, 2), (-2, 2), paths={"out": path})
    np.testing.assert_allclose(ax.lines[2].get_xydata(), [[2, 1.5]])
    assert ax.lines[2].get_marker() == "X"


@pytest.mark.parametrize("lr", [0.105, 0.2, 1e10, 1e60, 1e150])
def test_a_path_that_diverges_keeps_its_direction_and_is_named(ax, lr):
    path = descend(bowl, [1, 1], "gd", lr=lr, steps=400)
    plots.contours(ax, bowl, (-2, 2), (-2, 2), paths={"wild": path})
    drawn = ax.lines[0].get_xydata()
    assert np.isfinite(drawn).all()
    assert np.abs(drawn).max() < 1e4
    step, shown = path.points[len(drawn) - 1] - drawn[-2], drawn[-1] - drawn[-2]
    step, shown = step / np.abs(step).max(), shown / np.abs(shown).max()
    np.testing.assert_allclose(shown, step, rtol=1e-9, atol=1e-12)
    expected = "wild" if path.diverged is None else f"wild (diverged at step {path.diverged})"
    assert names(ax) == [expected]


@pytest.mark.parametrize(
    "points", [[[np.nan, np.nan]], [[9.0, 9.0]], [[1e300, 1e300], [0.0, 0.0]], [[0.0, 0.0]]]
)
def test_odd_paths_are_drawn_without_an_error(ax, points):
    plots.contours(ax, bowl, (-2, 2), (-2, 2), paths={"odd": np.array(points)})


@pytest.mark.parametrize("function", [lambda v: v[..., 0].log(), lambda v: 0 * v[..., 0]])
def test_functions_with_holes_or_without_height(ax, function):
    plots.contours(ax, function, (-2, 2), (-2, 2))


def flat(ax, **changed):
    arguments = {"function": bowl, "xlim": (-1, 1), "ylim": (-1, 1)} | changed
    return plots.contours(ax, **arguments)


@pytest.mark.parametrize(
    ("draw", "text"),
    [
        (
            lambda ax: plots.prediction(ax, [1, 2], [1]),
            r"y must be 1-D of length 2, got shape \[1\]",
        ),
        (
            lambda ax: plots.prediction(ax, [], []),
            r"x must be a non-empty 1-D array, got shape \[0\]",
        ),
        (lambda ax: plots.measurement(ax, [1, 2], [[1], [2]]), r"\[seeds, 2\] .* got \[2, 1\]"),
        (lambda ax: plots.measurement(ax, [1], [[1]], center="mode"), "'median', got 'mode'"),
        (lambda ax: plots.measurement(ax, [1], [[1]], spread="iqr"), "percentiles, got 'iqr'"),
        (lambda ax: plots.profile(ax, None, [1, 2]), r"\[seeds, layers\], got \[2\]"),
        (lambda ax: plots.profile(ax, [1], [[1, 2]]), "predicted must be 1-D of length 2"),
        (
            lambda ax: plots.measurement(ax, [1], [[1]], spread=(5, 101)),
            r"spread\[1\] must be a percentile from 0 to 100, got 101",
        ),
        (
            lambda ax: plots.profile(ax, None, [[1, 2]], every=-1),
            "every must be a whole number of at least 1, got -1",
        ),
        (lambda ax: flat(ax, levels=2.5), "levels must be a whole number .*, got 2.5"),
        (lambda ax: flat(ax, levels=0), "levels must be a whole number of at least 1, got 0"),
        (lambda ax: flat(ax, levels=[np.nan]), r"levels must be .* finite heights, got \[nan\]"),
        (lambda ax: flat(ax, xlim=(0, np.inf)), r"xlim must be .*, got \(0, inf\)"),
        (lambda ax: flat(ax, function=lambda v: 1.0), r"function must map .* into float"),
        (
            lambda ax: flat(ax, function=float),
            r"function failed on points of shape \[100, 100, 2\]",
        ),
        (
            lambda ax: plots.svg(lambda ax: None, {"font.sizes": 9}),
            r"style must hold rcParams by name, got \['font.sizes'\]",
        ),
        (lambda ax: plots.violins(ax, {}), "at least one named array, got {}"),
        (lambda ax: plots.violins(ax, {"a": [np.nan]}), r"groups\['a'\] has no finite value"),
        (lambda ax: flat(ax, xlim=(1, -1)), r"xlim must be an increasing pair .*, got \(1, -1\)"),
        (lambda ax: flat(ax, function=lambda v: v[0]), r"turned \[100, 100, 2\] into \[100, 2\]"),
        (lambda ax: flat(ax, paths={"p": [[1, 2, 3]]}), r"paths\['p'\] .* got \[1, 3\]"),
    ],
)
def test_bad_input_is_named(ax, draw, text):
    with pytest.raises(ValueError, match=text):
        draw(ax)


@pytest.mark.parametrize(
    ("draw", "text"),
    [
        (lambda ax: plots.prediction([1, 2], [1, 2], ax), r"ax must be .* axes, got \[1, 2\]"),
        (lambda ax: plots.contours(None, bowl, (-1, 1), (-1, 1)), "ax must be .*, got None"),
        (lambda ax: plots.prediction(ax, "ab", [1]), "x must hold real numbers, got 'ab'"),
        (lambda ax: plots.prediction(ax, [1], ["1"]), r"y must hold real numbers, got \['1'\]"),
        (lambda ax: plots.prediction(ax, [1], [1j]), r"y must hold real numbers, got \[1j\]"),
        (lambda ax: plots.prediction(ax, [10**400], [1]), r"x must hold real numbers, got \[1000"),
        (lambda ax: plots.measurement(ax, [1], [[1], [2, 3]]), "samples must hold real numbers"),
        (lambda ax: plots.profile(ax, None, "ab"), "samples must hold real numbers, got 'ab'"),
        (lambda ax: plots.profile(ax, "ab", [[1]]), "predicted must hold real numbers, got 'ab'"),
        (
            lambda ax: plots.measurement(ax, [1], [[1]], spread=("a", 95)),
            r"spread\[0\] must be a percentile from 0 to 100, got 'a'",
        ),
        (lambda ax: plots.profile(ax, None, [[1]], every="a"), "every must be .*, got 'a'"),
        (lambda ax: plots.violins(ax, [1.0]), r"groups must hold values by name, got \[1.0\]"),
        (
            lambda ax: plots.violins(ax, {"a": "b"}),
            r"groups\['a'\] must hold real numbers, got 'b'",
        ),
        (lambda ax: flat(ax, function=None), "function must be callable, got None"),
        (lambda ax: flat(ax, xlim="ab"), "xlim must hold real numbers, got 'ab'"),
        (lambda ax: flat(ax, levels="ab"), "levels must hold real numbers, got 'ab'"),
        (
            lambda ax: flat(ax, paths=[[1, 2]]),
            r"paths must hold descents by name, got \[\[1, 2\]\]",
        ),
        (lambda ax: flat(ax, paths={"p": "ab"}), r"paths\['p'\] must hold real numbers, got 'ab'"),
        (lambda ax: plots.svg(None, {}), "draw must be a callable on axes, got None"),
        (lambda ax: plots.svg(lambda ax: None, None), "style must hold rcParams by name, got None"),
        (lambda ax: plots.svg(lambda ax: None, {}, 3), "name must be a text, got 3"),
    ],
)
def test_bad_kinds_of_input_are_named(ax, draw, text):
    with pytest.raises(TypeError, match=text):
        draw(ax)


def test_levels_in_any_order_and_numbers_in_any_list(ax):
    flat(ax, levels=[4.0, 1.0, 4.0])
    assert list(ax.collections[0].levels) == [1, 4]
    plots.prediction(ax, [torch.tensor(1.0), torch.tensor(2.0)], (np.float32(3), 4))
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 3], [2, 4]])
