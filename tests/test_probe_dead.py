"""Dead units of large outputs, of which a part may tell that there are none."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import stabilitykit as sk
from stabilitykit import _ledger
from stabilitykit._flatness import ACTIVATIONS, bounded, described

ACTIVATION_MODULES = [nn.ReLU(), nn.GELU(), nn.Tanh(), nn.ELU(), nn.Hardtanh(), nn.Hardswish()]
LAYOUTS = ["features", "tokens", "maps", "channels last"]


def batch(layout: str) -> torch.Tensor:
    """Of 64 units at least, all of which have entries on both sides of 0 in each eighth."""
    generator = torch.Generator().manual_seed(0)
    shape = {"features": (2048, 64), "tokens": (32, 64, 64)}.get(layout, (32, 64, 8, 8))
    z = torch.randn(shape, generator=generator)
    return z.to(memory_format=torch.channels_last) if layout == "channels last" else z


def units(z: torch.Tensor) -> torch.Tensor:
    """A view of which the first dimension is that of units."""
    return z.movedim(1 if z.dim() == 4 else -1, 0)


def activation_record(activation: nn.Module, z: torch.Tensor, mode: str) -> sk.Record:
    layer = nn.Conv2d(64, 64, 1) if z.dim() == 4 else nn.Linear(64, 64)
    with torch.no_grad():  # what comes out is z
        layer.bias.zero_()
        layer.weight.copy_(torch.eye(64).view_as(layer.weight))
    model = nn.Sequential(layer, activation)
    with sk.Probe(model, mode=mode) as probe:
        model(z)
    return probe.records[-1]


@pytest.fixture
def looked_at(monkeypatch):
    """The numbers of entries of what is searched for units' ends."""
    sizes = []
    extreme = _ledger.extreme

    def spy(function, z, dimension):
        sizes.append(z.numel())
        return extreme(function, z, dimension)

    monkeypatch.setattr(_ledger, "extreme", spy)
    return sizes


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATION_MODULES, ids=lambda a: type(a).__name__)
def test_an_eighth_of_the_batch_shows_that_no_unit_is_dead(activation, layout, looked_at):
    z = batch(layout)
    assert activation_record(activation, z, "hybrid").dead == 0
    assert set(looked_at) == {z.numel() // 8}
    assert activation_record(activation, z, "exact").dead == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATION_MODULES, ids=lambda a: type(a).__name__)
def test_units_without_life_in_that_part_are_looked_at_in_whole(activation, layout, looked_at):
    z = batch(layout)
    with torch.no_grad():
        units(z)[:5] = -100.0
        z_last = units(z[-1:])  # of the last sample alone
        z_last[0] = 0.5
    assert activation_record(activation, z, "hybrid").dead == 4 / 64
    assert max(looked_at) == z.numel()
    assert activation_record(activation, z, "exact").dead == 4 / 64


@pytest.mark.parametrize("activation", ACTIVATION_MODULES, ids=lambda a: type(a).__name__)
def test_one_map_of_many_places_shows_that_no_unit_is_dead(activation, looked_at):
    z = torch.randn(16, 64, 16, 16, generator=torch.Generator().manual_seed(0))
    assert activation_record(activation, z, "hybrid").dead == 0
    assert set(looked_at) == {z.numel() // 16}
    z[0, 7] = -100.0
    assert activation_record(activation, z, "hybrid").dead == 0
    assert max(looked_at) == z.numel()
    z[:, 7] = -100.0
    for mode in ("hybrid", "exact"):
        assert activation_record(activation, z, mode).dead == 1 / 64


def test_a_unit_whose_largest_entry_is_the_end_of_the_flat_part_is_dead():
    z = batch("maps")
    z[:, 7].clamp_(max=0.0)
    for mode in ("hybrid", "exact"):
        assert activation_record(nn.ReLU(), z, mode).dead == 1 / 64


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_unit_that_lives_in_one_of_few_maps_is_not_dead(size):
    z = torch.randn(size, 64, 16, 16)
    z[1:, 7] = -100.0
    z[:, 8] = -100.0
    for mode in ("hybrid", "exact"):
        assert activation_record(nn.ReLU(), z, mode).dead == 1 / 64


def test_small_outputs_are_looked_at_in_whole(looked_at):
    z = batch("features")[:1024]
    assert activation_record(nn.ReLU(), z, "hybrid").dead == 0
    assert set(looked_at) == {z.numel()}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("activation", ACTIVATION_MODULES, ids=lambda a: type(a).__name__)
def test_what_is_not_finite_elsewhere_is_not_overlooked(activation, bad):
    z = batch("features")
    model = nn.Sequential(nn.Flatten(), activation)
    z[-1, -1] = bad
    found = {}
    for mode in ("hybrid", "exact"):
        with sk.Probe(model, mode=mode) as probe:
            model(z)
        found[mode] = probe.records[-1]
    assert found["hybrid"].rms == pytest.approx(found["exact"].rms, nan_ok=True, rel=0.1)
    assert bool(found["hybrid"].nonfinite) == bool(found["exact"].nonfinite)
    assert found["hybrid"].dead == found["exact"].dead


@pytest.mark.parametrize("values", [(3.3e38, 0.0), (3.3e38, -3.0e38), (-3.3e38, 0.0)])
@pytest.mark.parametrize("activation", [nn.GELU(), nn.Hardswish(), nn.SELU(), nn.ReLU()])
def test_overflow_at_the_end_of_the_range_is_not_overlooked(activation, values):
    z = batch("features")
    z[-1, -1], z[-2, -1] = values
    model = nn.Sequential(nn.Flatten(), activation)
    with sk.Probe(model) as probe:
        model(z)
    overflows = not activation(z).isfinite().all()
    assert (probe.records[0].nonfinite, bool(probe.records[1].nonfinite)) == (0, overflows)


def test_overflow_of_half_precision_is_not_overlooked():
    z = batch("features").half()
    z[-1, -1] = 65_000  # which selu multiplies by 1.05
    model = nn.Sequential(nn.Flatten(), nn.SELU())
    with sk.Probe(model) as probe:
        model(z)
    assert [r.nonfinite > 0 for r in probe.records] == [False, True]


class Doubled(nn.Module):
    """Whose activation gets what no layer has put out."""

    def forward(self, z):
        return functional.relu(2 * z)


@pytest.mark.parametrize("last", [1.0, math.nan, math.inf])
def test_what_no_layer_has_put_out_is_looked_at_in_whole(last, looked_at):
    model = Doubled()
    with sk.Probe(model, torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)) as probe:
        model(torch.zeros(2048, 64))  # leaves numbers where sums will not be written
        z = batch("features")
        z[-1, -1] = last
        model(z)
    relu = next(r for r in reversed(probe.records) if r.kind == "relu")
    assert (relu.dead, relu.nonfinite > 0) == (0, not math.isfinite(last))
    assert z.numel() in looked_at


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", sorted({n for n in ACTIVATIONS.values() if n != "prelu"}))
def test_bounded_holds_for_every_number_of_half_precision(name, dtype):
    function = getattr(functional, name)
    args = (0.5, 1.0) if name == "threshold" else ()
    z = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    z = z[z.isfinite()]
    if dtype == torch.bfloat16:  # larger ones are told by their sum
        z = z[z.abs() <= torch.finfo(dtype).max / 16]
    activation = described(function, (z, *args), {})
    assert bounded(activation, dtype) == bool(function(z, *args).isfinite().all())
