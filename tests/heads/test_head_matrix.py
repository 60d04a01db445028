"""Choice and calibration of every head in every setting, against logistic regression of scikit-learn."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

_SCRIPT = Path(__file__).parents[2] / "benchmarks/head_matrix.py"
_SPEC = importlib.util.spec_from_file_location("head_matrix", _SCRIPT)
matrix = sys.modules["head_matrix"] = importlib.util.module_from_spec(_SPEC)  # dataclasses look their module up
_SPEC.loader.exec_module(matrix)

KINDS = [kind for kind in matrix.VECTOR_HEADS if kind != "deep"]

OUTSIDE = {
    # slopes of 1.20 and 1.17 ± 0.03 on 20 draws: two rows spread over targets of nine to one, of which few are
    # independent, leave the frequent class less sure than it is; the calibration error is within the bounds
    "kernel | folds | - | weighed | grouped | - | 2 | 60": ["slope"],
    "kernel | validation | - | weighed | grouped | - | 2 | 60": ["slope"],
}
"""What is known to be outside of the bounds, not proved unavoidable; docs/heads.md has how many were measured."""

SLOW = ("linear", "svm", "kernel")  # of 15 classes and 60 images they take up to a minute for a cell


def find_outside(cells):
    """Cells outside of the bounds by five draws, and by twenty: of so many cells some are outside by chance."""
    seeming = [cell for cell in cells if matrix.measure(cell, 5).list_faults(cell.classes)]
    faults = {str(cell): matrix.measure(cell, 20).list_faults(cell.classes) for cell in seeming}
    return {cell: names for cell, names in faults.items() if names}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "linear"])  # which is the slowest
def test_heads_keep_to_the_reference(kind):
    """Few classes and few rows: 4 of the settings that the long ring measures."""
    cells = [cell for cell in matrix.choose_cells([kind], 24) if cell.classes == 2 or cell.images == 6]
    assert find_outside(cells[::5]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_heads_keep_to_the_reference_in_all_settings(kind):
    """All 128; of the heads that are slow there, a third of those with 15 classes and 60 images."""
    cells = matrix.list_cells([kind])
    large = [cell for cell in cells if cell.classes == 15 and cell.images == 60]
    left_out = set(large) - set(large[::3]) if kind in SLOW else set()
    known = {cell: names for cell, names in OUTSIDE.items() if cell.startswith(f"{kind} |")}
    assert find_outside([cell for cell in cells if cell not in left_out]) == known


def test_figures_of_a_matrix_are_those_by_hand():
    """Half of the rows right at a probability of 0.8: an error of 0.3, and log odds four times too large or more."""
    y = np.array([0, 1] * 50)
    probabilities = np.where((np.arange(100) // 2 % 2 == 0)[:, None] == (y[:, None] == [0, 1]), 0.8, 0.2)
    slope, error, accuracy = matrix.compute_figures(probabilities, y, np.ones(100))
    assert slope < 0.1 and error == pytest.approx(0.3) and accuracy == 0.5
    true = np.where(np.arange(100) % 10 < 8, 0, 1)  # eight of ten are of class 0, which has a probability of 0.8
    slope, error, accuracy = matrix.compute_figures(np.tile([0.8, 0.2], (100, 1)), true, np.ones(100))
    assert slope == pytest.approx(1, abs=0.01) and error == pytest.approx(0, abs=1e-9) and accuracy == 0.5


def test_a_head_that_is_too_sure_is_named():
    cell = matrix.list_cells(["linear"])[0]
    errors = (np.full(3, 0.01), np.full(3, 0.01))
    found = matrix.Comparison(np.array([0.5, 0.1, 0.5]), np.array([1.0, 0.01, 0.8]), errors)
    assert found.list_faults(cell.classes) == ["slope", "ECE", "accuracy", "chance"]
    alike = matrix.Comparison(np.array([0.95, 0.02, 0.79]), np.array([1.0, 0.01, 0.8]), errors)
    assert alike.list_faults(cell.classes) == []
