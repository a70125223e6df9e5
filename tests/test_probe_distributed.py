"""Two processes see the numbers of one: DistributedDataParallel and FSDP2 over gloo."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor

import stabilitykit as sk

PROGRAM = """
import json, sys
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import stabilitykit as sk

torch.set_num_threads(1)
rank = int(sys.argv[1])
distributed.init_process_group("gloo", rank=rank, world_size=2)


def measure(how, mode):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 33), nn.ReLU(), nn.Linear(33, 5), nn.LayerNorm(5))
    part = torch.randn(16, 12)
    if how != "one":
        part = part.chunk(2)[rank]
    if how == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    if how == "fsdp":
        mesh = init_device_mesh("cpu", (2,))
        for module in (model[0], model[2], model[3], model):
            fully_shard(module, mesh=mesh)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with sk.Probe(model, optimizer, mode=mode) as probe:
        for step in range(2):
            optimizer.zero_grad()
            model(part).abs().mean().backward()
            optimizer.step()
    with sk.Probe(model, mode=mode) as without:  # no optimiser ends the step
        optimizer.zero_grad()
        model(part).abs().mean().backward()
    return {
        "layers": [[r.layer, r.kind, r.shape[0], r.rms, r.grad_rms] for r in probe.records],
        "names": [[p.step, p.parameter] for p in probe.parameters + without.parameters],
        "norms": [[p.grad_norm, p.weight_norm] for p in probe.parameters + without.parameters],
        "ratios": [p.update_ratio for p in probe.parameters],
        "bad": [p.grad_nonfinite for p in probe.parameters],
    }


def diagnose():
    # Each process its own half, between steps together.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 5))
    x, t = torch.randn(64, 12).chunk(2)[rank], torch.randint(0, 5, (64,)).chunk(2)[rank]
    model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sums, loss_fn = [], nn.functional.cross_entropy
    for _ in range(2):
        diagnosis = sk.diagnose(model, (x, t), loss_fn, optimizer)
        optimizer.zero_grad()
        loss_fn(model(x), t).backward()
        optimizer.step()
        sums.append([float(p.detach().double().sum()) for p in model.parameters()])
    with torch.no_grad():
        model.module[0].bias.fill_(-100)
    sick = sk.diagnose(model, (x, t), loss_fn, optimizer)
    return {
        "findings": [[f.code, f.layer] for f in diagnosis.findings + sick.findings],
        "loss": diagnosis.loss,
        "sums": sums,
    }


runs = [("one", "exact"), ("ddp", "hybrid"), ("fsdp", "hybrid"), ("fsdp", "exact")]
results = {" ".join(run): measure(*run) for run in runs}
print(json.dumps(results | {"diagnosis": diagnose()}))
distributed.barrier()
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def found():
    """What each of two processes measured, by the way the model was spread and the mode."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank)],
            env=os.environ | names,
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    results = []
    try:
        for process in processes:
            out, error = process.communicate(timeout=120)
            assert process.returncode == 0, error
            results.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in processes:
            process.kill()
    return results


@pytest.mark.parametrize("run", ["ddp hybrid", "fsdp hybrid", "fsdp exact"])
def test_parameters_are_those_of_the_whole_model(found, run):
    one = found[0]["one exact"]
    assert len(one["names"]) == 3 * 6
    for of_process in found:
        spread = of_process[run]
        assert spread["names"] == one["names"]
        assert spread["bad"] == one["bad"] == [0] * 12
        for a, b in zip(spread["norms"], one["norms"], strict=True):
            assert a == pytest.approx(b, rel=1e-4)
        for a, b in zip(spread["ratios"], one["ratios"], strict=True):
            assert a == (None if b is None else pytest.approx(b, rel=1e-3))
    assert sum(ratio is None for ratio in one["ratios"]) == 1  # the norm's bias starts at zero


@pytest.mark.parametrize("run", ["ddp hybrid", "fsdp hybrid", "fsdp exact"])
def test_layers_are_those_of_each_process_and_add_up(found, run):
    layers = [of_process[run]["layers"] for of_process in found]
    assert len(layers[0]) == 8
    for first, second, whole in zip(*layers, found[0]["one exact"]["layers"], strict=True):
        assert first[:2] == second[:2] == whole[:2]
        assert first[2] == second[2] == whole[2] / 2
        for place, scale in ((3, 1), (4, 0.5)):  # whose loss is the mean over half the batch
            mean_square = (first[place] ** 2 + second[place] ** 2) / 2
            assert scale * mean_square**0.5 == pytest.approx(whole[place], rel=1e-4)


def test_each_process_diagnoses_its_part_and_trains_on(found):
    first, second = (of_process["diagnosis"] for of_process in found)
    assert first["findings"] == second["findings"] == [["dead-units", "0"]]
    assert first["loss"] != second["loss"]
    assert first["sums"] == second["sums"]
    assert first["sums"][0] != first["sums"][1]


@pytest.fixture
def mesh(monkeypatch):
    """Of this process alone."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_outputs_that_are_spread_are_recorded_like_others(mesh):
    def records(spread):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
        x = torch.randn(8, 6)
        if spread:
            model, x = distribute_module(model, mesh), distribute_tensor(x, mesh, [Replicate()])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with sk.Probe(model, optimizer) as probe:
            for _ in range(3):
                optimizer.zero_grad()
                model(x).sum().backward()
                optimizer.step()
        return [(r.step, r.layer, r.shape, r.rms, r.grad_rms) for r in probe.records]

    assert records(spread=True) == records(spread=False)
