"""Why neural networks stop learning, and what to do about it."""

from stabilitykit.gains import Gain, gain, gain_table, second_moment, slope_moment
from stabilitykit.meanfield import MeanField, critical_weight_var

__version__ = "0.1.0"

__all__ = [
    "Gain",
    "MeanField",
    "critical_weight_var",
    "gain",
    "gain_table",
    "second_moment",
    "slope_moment",
]
