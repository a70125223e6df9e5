"""Curves written where experiment trackers find them."""

import os
from collections.abc import Mapping
from pathlib import Path

from numpy.typing import ArrayLike

from stabilitykit._drawing import array, named, text


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
        ValueError: no curves, a curve that is no list, or a name outside the folder.
        TypeError: a curve that holds no numbers, or arguments of another kind.
        ImportError: TensorBoard is not installed.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = write_curves(folder, {"slow": [1.0, 0.9], "fast": [1.0, 0.1]})
        ...     sorted(path.name for path in written.iterdir())
        ['fast', 'slow']
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"folder must be a path, got {folder!r}")
    tag, curves = text("tag", tag), named("curves", curves, "lists of numbers")
    if not curves:
        raise ValueError(f"curves must hold at least one curve, got {curves!r}")
    checked = {}
    root = Path(folder)
    for name, values in curves.items():
        numbers = array(f"curves[{name!r}]", values)
        if numbers.ndim != 1 or not numbers.size:
            raise ValueError(
                f"curves[{name!r}] must be a non-empty list of numbers, got shape {numbers.shape}"
            )
        run = (root / text("curves: a name", name)).resolve()
        if not (run.is_relative_to(root.resolve()) and name.strip()):
            raise ValueError(f"curves: the name {name!r} is not one of a folder inside {root}")
        checked[name] = numbers
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as missing:
        raise ImportError("write_curves needs TensorBoard: pip install tensorboard") from missing
    for name, numbers in checked.items():
        with SummaryWriter(str(root / name)) as writer:
            for step, value in enumerate(numbers):
                writer.add_scalar(tag, value, step)
    return root
