"""Pages run as on other processors."""

import os
import subprocess
import sys

import pytest

from scripts import portable

KEYS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR")


def capability(processor):
    """What torch says of the kernels it takes, in a process of its own."""
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    kernels = os.environ | portable.PROCESSORS[processor]
    done = subprocess.run([sys.executable, "-c", code], env=kernels, capture_output=True, text=True)
    return done.stdout.strip()


def test_torch_takes_the_named_kernels():
    assert capability("SSE4") == "DEFAULT"
    assert capability("AVX2") in ("AVX2", "DEFAULT")  # the second where there is no AVX2


@pytest.mark.parametrize("broken", [None, *portable.PROCESSORS])
def test_a_page_that_fails_on_one_processor_fails(monkeypatch, capsys, broken):
    seen = []

    def run(command, env, **options):
        assert command[-2:] == ["--no-cache", "docs/index.md"]
        seen.append({key: env[key] for key in KEYS if env[key] != "unset"})
        failed = broken is not None and portable.PROCESSORS[broken] == seen[-1]
        return subprocess.CompletedProcess(command, int(failed))

    for key in KEYS:
        monkeypatch.setenv(key, "unset")
    monkeypatch.setattr(portable.subprocess, "run", run)
    assert portable.main(["docs/index.md"]) == (broken is not None)
    assert seen == list(portable.PROCESSORS.values())
    said = capsys.readouterr().out
    assert (
        "The same on all processors" in said if broken is None else f"Failed on: {broken}" in said
    )
