"""What TensorBoard reads back is what was written."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import stabilitykit as sk


def read(folder, tag="loss"):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_reads_the_curves_back(tmp_path):
    curves = {"a": np.linspace(1, 0, 5), "b": [3.0, float("inf")]}
    assert sk.write_curves(tmp_path / "runs", curves, tag="mse") == tmp_path / "runs"
    assert read(tmp_path / "runs" / "a", "mse") == [
        (step, float(np.float32(value))) for step, value in enumerate(curves["a"])
    ]
    assert read(tmp_path / "runs" / "b", "mse") == [(0, 3.0), (1, float("inf"))]


@pytest.mark.parametrize(
    ("curves", "said"),
    [
        ({}, "at least one curve"),
        ({"a": [[1.0]]}, r"curves\['a'\] must be a non-empty list of numbers, got shape \(1, 1\)"),
        ({"a": []}, r"got shape \(0,\)"),
        ({"../a": [1.0]}, "'../a' is not one of a folder inside"),
        ({" ": [1.0]}, "' ' is not one of a folder inside"),
    ],
)
def test_bad_curves_write_nothing(tmp_path, curves, said):
    with pytest.raises(ValueError, match=said):
        sk.write_curves(tmp_path / "runs", {"good": [1.0]} | curves if curves else curves)
    assert not (tmp_path / "runs").exists()
