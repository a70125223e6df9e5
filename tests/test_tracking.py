"""What TensorBoard reads back is what was written."""

import numpy as np
import pytest
import torch
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
        ({"a": "b"}, r"curves\['a'\] must hold real numbers, got 'b'"),
        ({"a": [1j]}, r"curves\['a'\] must hold real numbers, got \[1j\]"),
        ({3: [1.0]}, "curves: a name must be a text, got 3"),
    ],
)
def test_bad_curves_write_nothing(tmp_path, curves, said):
    with pytest.raises((TypeError, ValueError), match=said):
        sk.write_curves(tmp_path / "runs", {"good": [1.0]} | curves if curves else curves)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"folder": None}, "folder must be a path, got None"),
        ({"curves": [1.0]}, r"curves must hold lists of numbers by name, got \[1.0\]"),
        ({"tag": 3}, "tag must be a text, got 3"),
    ],
)
def test_bad_input_is_named(tmp_path, changed, said):
    with pytest.raises(TypeError, match=said):
        sk.write_curves(**({"folder": tmp_path, "curves": {"a": [1.0]}} | changed))
    assert not any(tmp_path.iterdir())


def test_a_curve_that_requires_a_gradient_is_written(tmp_path):
    sk.write_curves(tmp_path, {"a": torch.ones(2, requires_grad=True)})
    assert read(tmp_path / "a") == [(0, 1.0), (1, 1.0)]
