"""Lines, intervals and ranges lie where their numbers are."""

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from vlmedge.quant.report.plots import Series, interval_plot, line_plot, range_plot

SVG = "{http://www.w3.org/2000/svg}"


def find(svg, tag, style):
    return [e for e in ET.fromstring(svg).iter(SVG + tag) if e.get("class") == style]


def read_path(svg, style="line got"):
    (path,) = find(svg, "path", style)
    return re.findall(r"([ML])([\d.]+) ([\d.]+)", path.get("d"))


def test_a_line_rises_with_its_values_and_breaks_at_nan():
    svg = line_plot([Series("a", [1.0, 2.0, math.nan, 4.0])], y_label="dB")
    points = read_path(svg)
    assert [pen for pen, _, _ in points] == ["M", "L", "M"]
    assert [float(x) for _, x, _ in points] == sorted(float(x) for _, x, _ in points)
    heights = [float(y) for _, _, y in points]
    assert heights[0] > heights[1] > heights[2]  # pixels grow downwards
    assert heights[0] - heights[1] == pytest.approx((heights[1] - heights[2]) / 2, abs=0.2)


def test_a_log_line_has_equal_steps_for_equal_ratios_and_keeps_zero_on_the_edge():
    svg = line_plot([Series("a", [1e-4, 1e-2, 1.0, 0.0])], y_label="KL", is_log=True)
    heights = [float(y) for _, _, y in read_path(svg)]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)
    assert heights[3] > heights[0]


def test_points_carry_their_names():
    svg = line_plot(
        [Series("own", [3.0, math.nan, 5.0], "worst", is_points=True)],
        y_label="dB",
        names=["l0", "l1", "l2"],
        marks=[(0, "vision"), (2, "decoder")],
    )
    titles = [e[0].text for e in find(svg, "circle", "dot worst") if len(e)]
    assert titles == ["l0: 3", "l2: 5"]
    assert {"vision", "decoder", "own", "dB"} <= {t.text for t in find(svg, "text", "label")} | {
        t.text for t in find(svg, "text", "label strong")
    }
    assert len(find(svg, "line", "mark")) == 1  # the first part begins at the axis


@pytest.mark.parametrize("values", [[], [1.0], [math.nan], [0.0, 0.0], [math.inf, 1.0]])
@pytest.mark.parametrize("is_log", [False, True])
def test_series_of_little_are_still_a_picture(values, is_log):
    svg = line_plot([Series("a", values)], y_label="y", x_label="x", is_log=is_log)
    assert "nan" not in svg.lower().replace(">nan<", "")
    ET.fromstring(svg)


def test_intervals_hold_their_value_and_zero_is_marked():
    rows = [("a", -3.0, -1.0, 1.0, "quiet"), ("b <x>", -9.0, -6.0, -2.0, "bad")]
    svg = interval_plot(rows, unit="points")
    (zero,) = find(svg, "line", "zero")
    (quiet,), (bad,) = find(svg, "line", "interval quiet"), find(svg, "line", "interval bad")
    at = float(zero.get("x1"))
    assert float(quiet.get("x1")) < at < float(quiet.get("x2"))
    assert float(bad.get("x1")) < float(bad.get("x2")) < at
    (dot,) = find(svg, "circle", "dot bad")
    share = (float(dot.get("cx")) - float(bad.get("x1"))) / (
        float(bad.get("x2")) - float(bad.get("x1"))
    )
    assert share == pytest.approx(3 / 7, abs=0.01)
    assert dot[0].text == "b <x>: \u22126.0, \u22129.0 to \u22122.0 points"


def test_a_range_is_that_of_numpys_quantiles():
    values = np.random.default_rng(0).lognormal(size=37)
    svg = range_plot([("448x448", values.tolist())], unit="rel. L2", is_log=False)
    (line,), (half,), (median,) = (
        find(svg, "line", "interval got"),
        find(svg, "rect", "half"),
        find(svg, "line", "median"),
    )
    first, last = float(line.get("x1")), float(line.get("x2"))
    needed = np.interp(
        np.quantile(values, (0.25, 0.5, 0.75)), (values.min(), values.max()), (first, last)
    )
    left = float(half.get("x"))
    got = (left, float(median.get("x1")), left + float(half.get("width")))
    assert got == pytest.approx(tuple(needed), abs=0.05)


def test_a_range_without_a_finite_value_says_so():
    svg = range_plot([("a", [math.nan]), ("b", [0.0]), ("c", [1.0, 2.0])], unit="x")
    assert [text.text for text in find(svg, "text", "label bad")] == ["NaN"]
    ET.fromstring(svg)
