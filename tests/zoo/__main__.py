"""Print the confusion table: `python tests/zoo` from the repository."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rich
import torch

from zoo import confusion

torch.set_num_threads(1)
rich.print(confusion.drawn(confusion.table()))
