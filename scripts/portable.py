"""Run every page with the kernels of other processors: what it prints must not depend on them.

Libraries choose their kernels by the processor, and these round differently: chaotic networks and
long trainings then end elsewhere. Run from the repository root:

    python -m scripts.portable
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

# What torch, oneDNN and MKL take for the processor.
PROCESSORS = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
    "SSE4": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
    },
    "this one, with MKL's oldest kernels": {"MKL_CBWR": "COMPATIBLE"},
}


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 when a page fails on one of the processors."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.portable", description="Run pages as on other processors."
    )
    parser.add_argument("pages", nargs="*", help="Markdown files; by default all")
    pages = parser.parse_args(arguments).pages
    failed = []
    for name, kernels in PROCESSORS.items():
        print(f"Processor: {name}", flush=True)
        check = [sys.executable, "-m", "scripts.pages", "check", "--no-cache", *pages]
        if subprocess.run(check, env=os.environ | kernels, stdin=subprocess.DEVNULL).returncode:
            failed.append(name)
    print(f"Failed on: {'; '.join(failed)}" if failed else "The same on all processors")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
