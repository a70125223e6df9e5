"""What every page's process would load for itself; the fork server loads it once for all.

Not the package, since a served site must see its changes: see `preload_package`.
"""

import gc
from importlib import import_module

import matplotlib

from .draw import capture, style

gc.disable()  # a fifth of the time; nothing loaded here is ever thrown away

for name in (
    "contourpy",
    "rich.progress",
    "scipy.integrate",
    "scipy.optimize",
    "scripts.pages.child",
    "sklearn.datasets",
    "torch._dynamo",  # by the first optimiser, 1.5 s
):
    import_module(name)

# The first figure builds the grammar of formulas and looks for fonts.
matplotlib.use("Agg")
with matplotlib.rc_context(style()):
    pyplot = import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots()
    axes.set(xscale="log", xlabel=r"$\sigma_w^2$")
    axes.plot([1, 2], [1, 2], label="label")
    axes.legend()
    capture(figure, "")
    pyplot.close(figure)

gc.enable()
