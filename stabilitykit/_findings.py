"""What a diagnosis can find: the codes, the page that explains each, and the thresholds."""

from __future__ import annotations

from dataclasses import dataclass

# Every threshold of the diagnosis, with its reason. "convention" marks a choice.

# Depth scales e^-6 in amplitude, from the first weighted layer to the last hidden one. Schoenholz
# et al. 2017 (arXiv 1611.01232, section 5) find networks trainable to about six depth scales of
# the second moment; that is where training slows, and torch's default MLPs of five layers pass it
# and train. Convention: twice that, six scales of the amplitude, a factor of 403.
SCALES = 6.0

# Derived: the log of the second moment walks at random with a variance of about 5 per layer and
# unit of width for ReLU (Hanin & Rolnick 2018, arXiv 1803.01719). Convention: three deviations.
WALK = 5.0
DEVIATIONS = 3.0

# What is measured agrees with theory, beyond three deviations of that walk, within a factor that is
# a convention: one batch, one gradient and one entry of the law err by tens of percent.
AGREES = 2.0

# Convention: a layer where more than half of the entries are on the flat part of a bounded
# activation. A unit normal pre-activation has 0.3 % there for tanh and none for sigmoid.
SATURATED = 0.5

# Derived: with weights symmetric about zero a unit is off for all of a batch with probability ½ at
# most, whatever the batch, so more than ½ + 3 standard errors of a share is no chance.
DEAD = 0.5

# Convention: more than half of a layer's units are exact copies.
TIED = 0.5

# Convention: gains assume inputs of second moment 1. Digits as 0…16 have 8 and train; bytes as
# 0…255 have more than 100 and do not at usual rates. An offset of 10 standard deviations makes the
# condition number at least 1 + 100 n for n inputs.
INPUT_LARGE = 30.0
INPUT_SMALL = 1 / 100
INPUT_OFFSET = 10.0

# Derived: along a direction of curvature λ, gradient descent with lr·λ > 2 raises the loss; up to
# 4 it may yet settle in a flatter place (Lewkowycz et al. 2020, arXiv 2003.02218, section 3).
STEP_LARGE = 4.0
# Convention: a rise of the loss, on the batch of the step itself, by a twentieth of the loss, which
# is no rounding; for a warning also of the fall that the gradient promised. Steps of trainings that
# end well do it, too (Adam's first one often), so it only calls for the trial below.
STEP_RISE = 0.05
# Derived: a step longer than all the weights leaves nothing of them. A loss that began above chance
# falls to chance by it, which looks like descent.
STEP_WHOLE = 1.0
# A single step can mislead: Adam's first one moves all entries at once by the rate, and the loss
# may rise tenfold on the way to a good fit. So what further steps on the batch lead to decides.
# Fitted: ten of them did not tell the networks of tests/zoo that train from those that do not, and
# twenty did. The last quarter is the end, since losses of long steps go up and down.
STEP_TRIAL = 20
# Fitted: the end is good when the loss has fallen two thirds as far as in as many steps of the
# length that the remedy proposes. Trainings that end well at the rate reach 0.8 or more of that,
# those that do not at most 0.55, on the networks of tests/zoo, on which this was chosen: it is no
# measure of how often the rule errs elsewhere.
STEP_ENOUGH = 2 / 3
# Convention: the loss still falls in a straight line at ten thousand times the step, which changes
# the weights by less than a ten-thousandth. Steps that long are short of nothing.
STEP_SMALL = 1e-4
# Convention: the remedy lengthens such a step to a hundredth of the best one along it, and of the
# weights. The best one is best for one batch and one step; a training at that rate diverges.
STEP_AIM = 1e-2

PAGES = {
    "non-finite": "signal/variance-propagation/",
    "vanishing-signal": "signal/kaiming/",
    "exploding-signal": "signal/variance-propagation/",
    "vanishing-gradient": "signal/vanishing-exploding/",
    "exploding-gradient": "signal/edge-of-chaos/",
    "saturated": "signal/saturation/",
    "dead-units": "signal/seeds/",
    "tied-units": "signal/zero-centred/",
    "no-gradient": "backprop/computational-graph/",
    "unscaled-input": "descent/conditioning/",
    "mismatched-loss": "loss/sigmoid-bce/",
    "update-too-large": "descent/gradient-descent/",
    "update-too-small": "descent/gradient-descent/",
}
CODES = tuple(PAGES)

# What is measured for each code.
QUANTITIES = {
    "non-finite": "entries that are not finite",
    "vanishing-signal": "amplitude at the last hidden layer, relative to the input's",
    "exploding-signal": "amplitude at the output, relative to the input's",
    "vanishing-gradient": "gradient at the first layer, relative to the last hidden one's",
    "exploding-gradient": "gradient at the first layer (or step in time), relative to the last's",
    "saturated": "share of entries where the activation is flat",
    "dead-units": "share of units that are off for the whole batch",
    "tied-units": "share of units that are equal and stay so",
    "no-gradient": "gradient",
    "unscaled-input": "root mean square of the inputs",
    "mismatched-loss": "what the loss function gets",
    "update-too-large": "length of the step, relative to the best one in its direction",
    "update-too-small": "length of the step, relative to the best one in its direction",
}

# A cause hides the findings that follow from it: they are judged again once it is mended.
HIDES = {
    "unscaled-input": {
        *("saturated", "dead-units", "exploding-signal", "vanishing-signal", "update-too-large"),
        *("vanishing-gradient", "exploding-gradient", "update-too-small"),
    },
    "tied-units": {
        *("vanishing-signal", "exploding-signal", "vanishing-gradient", "exploding-gradient"),
        *("no-gradient", "dead-units", "saturated", "update-too-small", "update-too-large"),
    },
    "dead-units": {
        *("no-gradient", "vanishing-signal", "vanishing-gradient", "update-too-small"),
    },
    "saturated": {"no-gradient", "update-too-small"},
    "exploding-signal": {"saturated", "update-too-large"},
    "exploding-gradient": {"update-too-large"},
    "vanishing-signal": {"update-too-small"},
    "vanishing-gradient": {"update-too-small"},
    "mismatched-loss": {"no-gradient", "update-too-small", "update-too-large"},
    "no-gradient": {"update-too-small"},
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: one of `non-finite`, `vanishing-signal`, `exploding-signal`, `vanishing-gradient`,
            `exploding-gradient`, `saturated`, `dead-units`, `tied-units`, `no-gradient`,
            `unscaled-input`, `mismatched-loss`, `update-too-large`, `update-too-small`.
        layer: where it starts: a name in `named_modules` or `named_parameters`, "input" (with key
            or position, as in "input['mask']", where there are several), "loss", or the function
            and the last layer before it, as in "log after encoder.0".
        measured: what was measured, a number or words.
        expected: what a healthy model has there.
        severity: "error" where training is likely to fail, or to stay below what the model can do;
            "warning" where it may (as by a scale beyond its limit, and not beyond the limit's
            square).
        remedy: one sentence with the call that mends it, or what to change where no call can.
        page: path, on the site, of the page that explains it.
        predicted: for the codes of signals and gradients what theory expects `measured` to be with
            the weights as they are; None for the others, and where something on the way is not
            modelled.
        explained: whether that is as far from `expected` as what was measured, up to chance: the
            scale of the weights explains the finding. If not, something else does, such as weights
            that are not independent, and to rescale them alone may not cure it. None where
            `predicted` is.
    """

    code: str
    layer: str
    measured: float | str
    expected: float | str
    severity: str
    remedy: str
    page: str
    predicted: float | None = None
    explained: bool | None = None


def finding(
    code: str,
    layer: str,
    measured: float | str,
    expected: float | str,
    remedy: str,
    severity: str = "error",
) -> Finding:
    """A finding with its page."""
    return Finding(code, layer, measured, expected, severity, remedy, PAGES[code])


def not_finite(number: int, name: str) -> str:
    """That so many entries of something are nan or infinite.

    Examples:
        >>> not_finite(1, "inputs"), not_finite(2, "0.weight")
        ('1 entry of inputs is nan or infinite', '2 entries of 0.weight are nan or infinite')
    """
    entries, are = ("entry", "is") if number == 1 else ("entries", "are")
    return f"{number} {entries} of {name} {are} nan or infinite"


def causes(found: list[Finding]) -> tuple[Finding, ...]:
    """Findings without those that another one explains, in the order of the codes."""
    hidden = {code for one in found for code in HIDES.get(one.code, ())}
    kept = [one for one in found if one.code not in hidden]
    return tuple(sorted(kept, key=lambda one: CODES.index(one.code)))
