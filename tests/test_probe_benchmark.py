"""The benchmark's methods train the same model and leave it as it was; its report is complete."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from scripts.benchmarks import probe as benchmark


def small():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), torch.randn(4, 8)


@pytest.mark.parametrize("name", [m for m, (_, needs) in benchmark.METHODS.items() if not needs])
def test_each_method_trains_and_leaves_nothing(name):
    expected, training = (benchmark.Training(small, "cpu") for _ in range(2))
    steps = 2 + (name == "probe, removed")
    for _ in range(steps):
        expected.step()
    with benchmark.METHODS[name][0](training) as step:
        step()
        step()
    assert all(map(torch.equal, training.model.parameters(), expected.model.parameters()))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in training.model.modules())


def test_memory_is_that_of_torch():
    kept = {}

    def step():
        kept["last"] = torch.empty(2**18).fill_(1)

    assert benchmark.peak_memory(step, "cpu") == 2**20


def test_memory_counts_what_a_method_keeps_between_steps(monkeypatch):
    import contextlib

    @contextlib.contextmanager
    def keeping(training):
        kept = torch.empty(2**18)
        yield training.step
        del kept

    monkeypatch.setitem(benchmark.METHODS, "keeping", (keeping, ""))
    training = benchmark.Training(small, "cpu")
    training.step()
    bare, more = (benchmark.held_memory(m, training, "cpu") for m in ("bare", "keeping"))
    assert more - bare == 2**20


def test_report(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "MODELS", dict.fromkeys(benchmark.MODELS, small))
    path = tmp_path / "probe.json"
    arguments = ["probe", "--ours", "--rounds", "1", "--steps", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", arguments)
    status = benchmark.main()
    report = json.loads(path.read_text())
    assert set(report["versions"]) >= {"stabilitykit", "torch", "python"}
    assert report["date"].startswith("20")
    rows = [row for model in report["models"] for row in model["rows"]]
    assert len(rows) == 3 * 6
    assert all(row["ratio"] > 0 for row in rows)
    assert all(
        low <= row["ratio"] <= high for row in rows for low, high in [row["ratio_quartiles"]]
    )
    judged = [row for row in rows if "within" in row]
    assert len(judged) == 6
    assert status == int(not all(row["within"] for row in judged))
    assert "probe, hybrid" in capsys.readouterr().out


def test_peers_and_more_threads_are_measured_in_processes_of_their_own(monkeypatch, tmp_path):
    asked = []

    def run(command, **_):
        options = dict(zip(command[3::2], command[4::2], strict=True))
        asked.append((options["--only"], options["--threads"]))
        bare = {"method": "bare", "milliseconds": 2.0}
        row = {"method": options["--only"], "ratio": 1.5, "milliseconds": 3.0, "within": False}
        row |= {"extra_peak_bytes": 0, "ratio_quartiles": [1.5, 1.5], "synchronisations": None}
        report = json.dumps({"models": [{"rows": [bare, row]}]})
        Path(options["--json"]).write_text(report)
        return subprocess.CompletedProcess(command, 1)

    path = tmp_path / "probe.json"
    monkeypatch.setattr(benchmark, "MODELS", {"MLP 20×512": small})
    hybrid, peer = "probe, hybrid", "wandb.watch, offline"
    kept = {m: benchmark.METHODS[m] for m in ("bare", hybrid)}
    monkeypatch.setattr(benchmark, "METHODS", kept | {peer: (benchmark.METHODS["bare"][0], "json")})
    monkeypatch.setattr(benchmark.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(benchmark.subprocess, "run", run)
    arguments = ["probe", "--rounds", "1", "--steps", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", arguments)
    benchmark.main()
    assert asked == [(hybrid, "4"), (peer, "1")]
    rows = json.loads(path.read_text())["models"][0]["rows"]
    assert [row["method"] for row in rows] == ["bare", hybrid, f"{hybrid}, 4 threads", peer]
    assert rows[2]["bare_milliseconds"] == 2.0
    assert "within" not in rows[2]
