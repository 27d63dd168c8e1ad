"""Charts: round ticks that span the data, and lines that run through the points."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from evaluation.report.charts import line_chart, ticks


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.013, 0.014), (-3, 7), (1, 84), (4.9, 5.2), (0, 1e6), (1e-9, 2e-9), (99.99, 100.01)]
)
def test_ticks_are_round_even_and_span_the_data(low: float, high: float) -> None:
    found = ticks(low, high)
    steps = np.diff(found)
    assert found[0] <= low + 1e-9 * (high - low) and found[-1] >= high - 1e-9 * (high - low)
    assert 3 <= len(found) <= 9 and np.allclose(steps, steps[0])
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-6)
    assert min(abs(mantissa - round_number) for round_number in (1, 2, 2.5, 5)) < 1e-3
    assert found[0] > low - steps[0] * 1.001 and found[-1] < high + steps[0] * 1.001, "no empty intervals"


def test_lines_run_through_their_points_in_proportion() -> None:
    steps, values = [0, 10, 20], [0.0, 1.0, 0.5]
    root = ElementTree.fromstring(line_chart({"loss": (steps, values)}, "step", "loss"))
    path = next(part.get("d") for part in root.iter() if part.get("class") == "line s1")
    assert path is not None
    at = np.array(re.findall(r"[ML]([\d.]+) ([\d.]+)", path), float)
    assert np.isclose(at[1, 0] - at[0, 0], at[2, 0] - at[1, 0], atol=0.2)
    assert at[1, 1] < at[2, 1] < at[0, 1], "up is more"
    assert np.isclose(at[0, 1] - at[2, 1], at[2, 1] - at[1, 1], atol=0.2)


def test_names_are_escaped_gaps_left_out_and_a_single_point_draws_nothing() -> None:
    svg = line_chart({'<b>&"': ([1, 2, 3], [1.0, float("nan"), 2.0])}, "step", "y")
    assert "<b>" not in svg and "nan" not in svg
    ElementTree.fromstring(svg)
    assert line_chart({"one": ([5], [0.5])}, "step", "y") == ""
    assert line_chart({}, "step", "y") == ""
