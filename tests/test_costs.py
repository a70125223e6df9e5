"""The table of the probe's costs holds the benchmark's own numbers."""

import json

from scripts.site.costs import costs_table

ROW = {"milliseconds": 4.0, "extra_peak_bytes": 0, "synchronisations": None}
REPORT = {
    "date": "2026-01-02T03:04:05+00:00",
    "versions": {"stabilitykit": "0.1.0", "torch": "2.13.0"},
    "machine": {"processor": "x", "cores": 2, "threads": 1, "device": "cpu"},
    "rounds": 9,
    "models": [
        {"model": model, "rows": [ROW | {"method": "bare", "ratio": 1.0}, *others]}
        for model, others in (
            (
                "MLP",
                [
                    ROW | {"method": "peer", "ratio": 3.0, "extra_peak_bytes": 2**30},
                    ROW | {"method": "probe, hybrid", "ratio": 1.234, "extra_peak_bytes": 635124},
                ],
            ),
            (
                "CNN",
                [ROW | {"method": "probe, hybrid", "ratio": 1.056, "extra_peak_bytes": 2**20}],
            ),
        )
    ],
}


def test_a_row_with_another_bare_step_says_so(tmp_path):
    report = json.loads(json.dumps(REPORT))
    for model, bare in zip(report["models"], (2.5, 1.25), strict=True):
        row = ROW | {"method": "probe, hybrid, 2 threads", "ratio": 1.5, "bare_milliseconds": bare}
        model["rows"].append(row)
    path = tmp_path / "probe.json"
    path.write_text(json.dumps(report))
    text = costs_table(path)
    assert "| probe, hybrid, 2 threads | 1.50 | 0.0 | 1.50 | 0.0 |" in text
    assert "In the row “probe, hybrid, 2 threads” the bare step takes 2.5, 1.2 ms." in text


def test_costs_are_those_of_the_report(tmp_path):
    path = tmp_path / "probe.json"
    path.write_text(json.dumps(REPORT))
    rows = costs_table(path).splitlines()
    assert rows[:5] == [
        "|  | MLP | MiB | CNN | MiB |",
        "| --- | --: | --: | --: | --: |",
        "| bare | 1.00 | 0.0 | 1.00 | 0.0 |",
        "| peer | 3.00 | 1024.0 |  |  |",
        "| probe, hybrid | 1.23 | 0.6 | 1.06 | 1.0 |",
    ]
    assert "MiB: by how much the peak" in rows[-1]
    assert "2026-01-02, cpu, 1 thread, 9 rounds" in rows[-1]
    assert "torch 2.13.0" in rows[-1]
