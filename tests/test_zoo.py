"""Every sick model gets its code at the right layer and is cured; no healthy one gets a finding."""

import math
import re
import warnings

import pytest
import torch
from torch import nn
from zoo import confusion, healthy, sick

import stabilitykit as sk
from stabilitykit._findings import CODES, PAGES
from stabilitykit._scales import chance


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def cured(case, parts, findings):
    """Do what the remedies say, letter by letter, and diagnose again."""
    model, (inputs, targets), loss_fn, optimizer = *parts, *(None,) * (4 - len(parts))
    model = case.edit(model) if case.edit else model
    loss_fn = case.loss_fn or loss_fn
    names = {"model": model, "inputs": inputs, "targets": targets, "loss_fn": loss_fn}
    names |= {"optimizer": optimizer, "batch": (inputs, targets), "sk": sk, "nn": nn}
    names["torch"] = torch
    for found in findings:
        for call in re.findall("`([^`]+)`", found.remedy):
            exec(call, names)
    batch = names["inputs"], names["targets"]
    return sk.diagnose(names["model"], batch, names["loss_fn"], names["optimizer"])


@pytest.mark.parametrize("name", sick.SICK)
def test_a_sick_model_gets_its_code_where_it_starts_and_is_cured(name, record_property):
    case, parts = sick.SICK[name], sick.build(name)
    findings = sk.diagnose(*parts).findings
    for pair in confusion.pairs(case.code, findings):
        record_property("zoo", pair)
    layers = case.layer if isinstance(case.layer, tuple) else (case.layer,)
    assert any(f.code == case.code and f.layer in layers for f in findings), findings
    for found in findings:
        assert found.page == PAGES[found.code]
        assert found.severity in ("error", "warning")
        assert re.fullmatch(r"[A-Z][^`]*(`[^`]+`[^`]*)*\.", found.remedy)
        # What no call mends is said in words, and the zoo does it.
        assert "`" in found.remedy or case.edit or case.loss_fn
    assert cured(case, parts, findings).findings == ()


@pytest.mark.parametrize("name", [n for n, c in sick.SICK.items() if c.rewritten])
def test_the_other_way_out_cures_too(name):
    """Freezing what gets no gradient is one; connecting it is the other."""
    model, *rest = sick.build(name)
    assert sk.diagnose(sick.SICK[name].rewritten(model), *rest).findings == ()


def test_every_missing_gradient_has_another_way_out():
    assert all(c.rewritten for c in sick.SICK.values() if c.code == "no-gradient")


WEIGHTS = {"vanishing-signal", "exploding-signal", "vanishing-gradient", "exploding-gradient"}
WEIGHTS |= {"saturated", "dead-units", "tied-units"}
# "auto" draws the weights of layers; these are sick in what it leaves alone.
UNTOUCHED = {
    "batchnorm-dead": "a norm's bias",
    "zero-lstm": "recurrent weights",
    "tiny-lstm-weights": "recurrent weights",
    "encoder-pre-ln-tiny": "the weights of attention",
    "encoder-pre-ln-times-30": "the weights of attention",
    "rnn-cell-weights-tiny": "recurrent weights",
    "lstm-cell-input-weights-times-50": "recurrent weights",
    "gru-cell-recurrent-weights-times-20": "recurrent weights",
    "rnn-weights-times-30": "recurrent weights",
    "gru-weights-times-50": "recurrent weights",
    "lstm-2-weights-times-30": "recurrent weights",
    "gru-recurrent-weights-times-20": "recurrent weights",
    "lstm-bidirectional-recurrent-weights-times-30": "recurrent weights",
    "lstm-input-weights-times-50": "recurrent weights",
    "rnn-input-weights-times-50": "recurrent weights",
    "plain-parameters-small": "parameters of the model itself",
    "plain-parameters-large": "parameters of the model itself",
    "plain-parameters-constant": "parameters of the model itself",
}


@pytest.mark.parametrize("name", [n for n, c in sick.SICK.items() if c.code in WEIGHTS])
def test_initialize_cures_what_sick_weights_cause(name):
    case = sick.SICK[name]
    model, batch, loss_fn = sick.build(name)[:3]
    model = case.edit(model) if case.edit else model
    if name.startswith("plain-parameters") or name.endswith("-embeddings"):
        with pytest.raises(ValueError, match="has no linear or convolutional layer"):
            sk.initialize(model, "auto", batch)
        return
    drawn = {entry.layer for entry in sk.initialize(model, "auto", batch)}
    findings = sk.diagnose(model, batch, loss_fn).findings
    if name in UNTOUCHED:
        assert findings
        assert all(f.layer not in drawn for f in findings)
    else:
        assert findings == ()


SCALES = {"vanishing-signal", "exploding-signal", "vanishing-gradient", "exploding-gradient"}
# What theory, the limit of large width for independent weights, does not predict of the others.
NOT_PLAIN = {
    "plain-residual-40": "40 sums of 16 units: what is common to samples and gradients takes over",
    "residual-40-learnt-scale": "the same",
    "residual-40-backward": "the same",
    "elman-recurrent-weights-times-20": "one weight used 40 times",
    "encoder-pre-ln-tiny": "a transformer",
    "encoder-pre-ln-times-30": "a transformer",
    "unet-tiny-weights": "a U-Net",
    "plain-resnet-huge": "a ResNet",
    "plain-parameters-small": "products outside of layers",
    "plain-parameters-large": "products outside of layers",
}
PLAIN = [
    name
    for name, case in sick.SICK.items()
    if case.code in SCALES and name not in NOT_PLAIN and case.layer != "rnn"
]


@pytest.mark.parametrize("name", PLAIN)
def test_what_weights_of_a_wrong_gain_do_is_what_theory_predicts(name):
    """Within two deviations of the random walk of finite width, and a third.

    The walk is what `chance` has three deviations of. The third is for what a single batch and a
    single gradient err by, whose directions the expectation leaves to chance. In double precision,
    since in float32 rounding, and no signal, is what the deepest of them measure.
    """
    model, (inputs, targets), loss_fn = sick.build(name)[:3]
    diagnosis = sk.diagnose(model.double(), (inputs.double(), targets), loss_fn)
    found = [one for one in diagnosis.findings if one.code in SCALES]
    assert found
    for one in found:
        error = abs(math.log(one.predicted / one.measured))
        assert error < 2 / 3 * chance(diagnosis.signals) + math.log(4 / 3), one
        assert one.explained


def test_theory_is_held_against_many_networks_of_each_kind():
    codes = [sick.SICK[name].code for name in PLAIN]
    assert all(codes.count(code) >= 3 for code in SCALES)
    assert sum(name.startswith("cnn") for name in PLAIN) >= 3


@pytest.mark.parametrize("name", healthy.HEALTHY)
def test_a_model_that_trains_gets_no_finding(name, record_property):
    findings = sk.diagnose(*healthy.confirmed(name)).findings
    for pair in confusion.pairs("healthy", findings):
        record_property("zoo", pair)
    assert findings == ()


def test_the_zoo_is_large_and_holds_every_code():
    assert len(sick.SICK) >= 40
    assert len(healthy.HEALTHY) >= 40
    assert {case.code for case in sick.SICK.values()} == set(CODES)


def test_a_model_that_does_not_train_is_not_taken_for_healthy(monkeypatch):
    monkeypatch.setitem(
        healthy.HEALTHY, "frozen", lambda: (*sick.build("sgd-lr-1e-12")[:3], sick.stuck())
    )
    with pytest.raises(AssertionError, match="frozen does not train"):
        healthy.confirmed("frozen")


def test_the_confusion_table_counts_codes_by_codes():
    chosen = ["zero-weights", "bytes"]
    table = confusion.table(chosen, ["mlp-2-relu-sgd"])
    assert table[("tied-units", "tied-units")] == 1
    assert table[("unscaled-input", "unscaled-input")] == 1
    assert table[("healthy", "healthy")] == 1
    assert sum(table.values()) == 3
