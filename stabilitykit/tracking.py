"""Curves written where experiment trackers find them."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike


def write_curves(
    folder: str | os.PathLike[str], curves: Mapping[str, ArrayLike], tag: str = "loss"
) -> Path:
    """Write loss curves as TensorBoard event files, one run a curve.

    `tensorboard --logdir folder` then shows them in one chart. Values are stored as float32, which
    is all that TensorBoard keeps.

    Args:
        folder: where the runs go; made when it is not there.
        curves: run name -> values [steps], step 0 first. Values that are not finite are written as
            such, and TensorBoard marks them.
        tag: name of the chart.

    Returns:
        The folder.

    Raises:
        ValueError: no curves, a curve that is no list of numbers, or a name outside the folder.
        ImportError: TensorBoard is not installed.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = write_curves(folder, {"slow": [1.0, 0.9], "fast": [1.0, 0.1]})
        ...     sorted(path.name for path in written.iterdir())
        ['fast', 'slow']
    """
    if not curves:
        raise ValueError(f"curves must hold at least one curve, got {curves!r}")
    checked = {}
    root = Path(folder)
    for name, values in curves.items():
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 1 or not array.size:
            raise ValueError(
                f"curves[{name!r}] must be a non-empty list of numbers, got shape {array.shape}"
            )
        if not (root / name).resolve().is_relative_to(root.resolve()) or not name.strip():
            raise ValueError(f"curves: the name {name!r} is not one of a folder inside {root}")
        checked[name] = array
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as missing:
        raise ImportError("write_curves needs TensorBoard: pip install tensorboard") from missing
    for name, array in checked.items():
        with SummaryWriter(str(root / name)) as writer:
            for step, value in enumerate(array):
                writer.add_scalar(tag, value, step)
    return root
