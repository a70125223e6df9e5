"""Every sick model gets its code at the right layer and is cured; no healthy one gets a finding."""

import re
import warnings

import pytest
import torch
from torch import nn
from zoo import confusion, healthy, sick

import stabilitykit as sk
from stabilitykit._findings import CODES, PAGES


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
    "rnn-weights-times-30": "recurrent weights",
    "gru-weights-times-50": "recurrent weights",
    "lstm-2-weights-times-30": "recurrent weights",
    "gru-recurrent-weights-times-20": "recurrent weights",
    "lstm-bidirectional-recurrent-weights-times-30": "recurrent weights",
    "lstm-input-weights-times-50": "recurrent weights",
    "rnn-input-weights-times-50": "recurrent weights",
    "plain-parameters-small": "parameters of the model itself",
    "plain-parameters-large": "parameters of the model itself",
}


@pytest.mark.parametrize("name", [n for n, c in sick.SICK.items() if c.code in WEIGHTS])
def test_initialize_cures_what_sick_weights_cause(name):
    case = sick.SICK[name]
    model, batch, loss_fn = sick.build(name)[:3]
    model = case.edit(model) if case.edit else model
    if name.startswith("plain-parameters"):
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
