"""Why neural networks stop learning, and what to do about it."""

from typing import Any

from stabilitykit.curvature import hvp
from stabilitykit.datasets import Digits, digits, polynomial_regression
from stabilitykit.descent import Path, descend
from stabilitykit.diagnosis import Diagnosis, Finding, diagnose
from stabilitykit.gains import Gain, gain, gain_table, second_moment, slope_moment
from stabilitykit.initialization import Initialized, Scaled, initialize, lsuv
from stabilitykit.meanfield import MeanField, critical_weight_var
from stabilitykit.networks import MLP, Ensemble
from stabilitykit.prediction import LayerPrediction, Prediction, predict
from stabilitykit.probe import NonFinite, ParameterRecord, Probe, Record
from stabilitykit.roots import Root, newton_root
from stabilitykit.signals import SignalProfile, signal_profile
from stabilitykit.tracking import write_curves
from stabilitykit.training import History, fit

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "Diagnosis",
    "Digits",
    "Ensemble",
    "Finding",
    "Gain",
    "History",
    "Initialized",
    "LayerPrediction",
    "MeanField",
    "NonFinite",
    "ParameterRecord",
    "Path",
    "Prediction",
    "Probe",
    "Record",
    "Root",
    "Scaled",
    "SignalProfile",
    "critical_weight_var",
    "descend",
    "diagnose",
    "digits",
    "fit",
    "gain",
    "gain_table",
    "hvp",
    "initialize",
    "lsuv",
    "newton_root",
    "plots",
    "polynomial_regression",
    "predict",
    "second_moment",
    "signal_profile",
    "slope_moment",
    "write_curves",
]


def __getattr__(name: str) -> Any:
    if name == "plots":  # brings matplotlib, so only when it is asked for
        import importlib

        return importlib.import_module("stabilitykit.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
