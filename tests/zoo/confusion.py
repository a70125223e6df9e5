"""What the diagnosis says of every model against what it is; `python tests/zoo` prints it."""

from collections import Counter

from rich.table import Table

import stabilitykit as sk
from stabilitykit._findings import CODES
from zoo import healthy, sick


def table(sick_names=None, healthy_names=None):
    """How often each truth met each verdict: a Counter of (truth, verdict)."""
    counts = Counter()
    for name in sick.SICK if sick_names is None else sick_names:
        counts.update(pairs(sick.SICK[name].code, sk.diagnose(*sick.build(name)).findings))
    for name in healthy.HEALTHY if healthy_names is None else healthy_names:
        counts.update(pairs("healthy", sk.diagnose(*healthy.build(name)).findings))
    return counts


def pairs(truth, findings):
    """(truth, verdict) for every verdict, each once."""
    return [(truth, code) for code in sorted({f.code for f in findings} or {"healthy"})]


def drawn(counts):
    """The counts as a table of rich: truths by row, verdicts by column."""
    verdicts = (*CODES, "healthy")
    grid = Table(title="rows: what it is; columns: what was found (a model may get several)")
    grid.add_column("", no_wrap=True)
    for number, _ in enumerate(verdicts, 1):
        grid.add_column(str(number), justify="right")
    for number, truth in enumerate(verdicts, 1):
        row = [str(counts[truth, verdict] or "·") for verdict in verdicts]
        grid.add_row(f"{number} {truth}", *row)
    return grid
