# ---
# description: A deep network that cannot read digits, measured layer by layer, diagnosed, explained and cured.
# ---

# %% [markdown]
# # Why does this classifier guess?
#
# This is the patient of [the first page](../index.md): eleven linear layers with ReLU between them,
# on 8 × 8 images of handwritten digits. The code has no bug, the data are clean, the loss is right.
# It trains, and after ten epochs it names the right digit about once in ten. A die with ten faces
# does as well.
#
# There the cure took one function. Here we go step by step, as you would with a network of your
# own: look, measure, name the cause, change **one** thing, and measure again.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.console import Console

import stabilitykit as sk
from stabilitykit.report import text

torch.set_num_threads(1)
data = sk.digits()
batch = data.train_x[:64], data.train_y[:64]
loss_fn = torch.nn.functional.cross_entropy
print(f"{len(data.train_x)} images to learn from, {len(data.test_x)} to test on")
#> 1258 images to learn from, 539 to test on
for name, images in {"all images": data.train_x, "the batch": batch[0]}.items():
    print(f"mean square of the pixels of {name}: {images.square().mean():.1f}")
#> mean square of the pixels of all images: 0.9
#> mean square of the pixels of the batch: 1.2

# %% [markdown]
# We learn from all images and measure on a batch of 64. Each pixel is standardised to mean 0 and
# variance 1, so the inputs are not the cause. (Some pixels are always empty, hence `0.9`; in these 64
# images a few rare pixels weigh more, hence `1.2`.) One function makes a network, one trains it. Every
# treatment uses both, so that whatever differs is the treatment.

# %%
def make(activation="relu", linears=11, seed=0):
    torch.manual_seed(seed)
    return sk.MLP([64] * linears + [10], activation)


def train_it(model, lr=0.05, epochs=10):
    run = dict(loss_fn=loss_fn, lr=lr, epochs=epochs, batch_size=32, progress=False)
    return sk.fit(model, data[:2], test=data[2:], **run)


# %% [markdown]
# ## Look: the loss does not fall
#
# Guessing costs $\ln 10$ with ten digits. The first thing everybody tries is another learning rate, so
# here is also a fresh copy with ten times as much:

# %%
history = {"patient": train_it(make()), "ten times the rate": train_it(make(), lr=0.5)}
fig, ax = plt.subplots()
for name, run in history.items():
    ax.plot(range(1, 11), run.losses, "o-", ms=3, label=name)
    print(f"{name}: loss {run.losses[-1]:.1f}, accuracy {run.test_accuracies[-1]:.1f}")
#> patient: loss 2.3, accuracy 0.1
#> ten times the rate: loss 2.3, accuracy 0.1
sk.plots.prediction(ax, [1, 10], [np.log(10)] * 2, "guessing, ln 10", linestyle=":")
ax.set(ylim=(0, 2.6), xlabel="epoch", ylabel="training loss")
ax.legend(loc="lower left")
# Claim: Eleven linear layers with ReLU and torch's default weights stay at the loss of
# guessing, at a learning rate of 0.05 and at ten times that rate.
assert all(abs(run.losses - np.log(10)).max() < 0.05 for run in history.values())

# %% [markdown]
# <!--figure: name="loss-that-does-not-fall"
# alt="Training loss against epoch for two learning rates: both are flat lines that lie on the dotted line of guessing for all ten epochs."
# caption="**Ten epochs, and nothing happened.** Stochastic gradient descent, batches of 32, learning rates `0.05` and `0.5`, seed 0. Dotted: the loss of one who guesses. A flat line says that something is wrong and not what."-->
#
# So it is not the learning rate. Before turning more knobs, measure.
#
# ## Measure, layer by layer
#
# **Predict first.** Torch draws weights and biases of `nn.Linear` uniformly within $\pm 1/\sqrt n$,
# where $n$ is the fan-in. So $\sigma_w^2 = n\,\mathrm{Var}(w) = 1/3$, and the biases have variance
# $\sigma_b^2 = 1/(3n)$. `sk.MeanField` then says what mean square $q$ the pre-activations of each layer
# have, and by which factor $\chi$ each layer multiplies the mean square of the gradient on its way back:

# %%
weight_var, bias_var = 1 / 3, 1 / (3 * 64)
field = sk.MeanField("relu", weight_var, bias_var)
chi = float(field.chi(q=1.0))
start = weight_var * batch[0].square().mean().item() + bias_var
lengths = field.lengths(9, start=start)
print(f"factor per layer: 1/{1 / chi:.0f}")
#> factor per layer: 1/6
print(f"the mean square settles at {float(field.fixed_point()):.4f}")
#> the mean square settles at 0.0063

# %% [markdown]
# The mean square also counts what all images share. What **differs** between two of them is
# $q\,(1 - c)$, half their squared distance, with $c$ their correlation over the units. Assume that
# two images start unrelated, with $c = 0$; the biases are the same for both. For two normal variables of
# variance $q$ and correlation $c$, ReLU keeps of their product $\tfrac q2\,s(c)$ with
# $s(c) = \big(\sqrt{1 - c^2} + (\pi - \arccos c)\,c\big)/\pi$ (Cho and Saul, 2009). Layer by layer:

# %%
correlations = [bias_var / start]
for q, after in zip(lengths, lengths[1:]):
    c = correlations[-1]
    share = (np.sqrt(1 - c**2) + (np.pi - np.arccos(c)) * c) / np.pi
    correlations.append((weight_var * q / 2 * share + bias_var) / after)
differs = lengths * (1 - np.array(correlations))
print(f"all of it, then what differs: {lengths[-1]:.0e}, {differs[-1]:.0e}")
#> all of it, then what differs: 6e-03, 1e-08

# %% [markdown]
# **Then measure**: fifty networks drawn like the patient, in one call, and the patient itself, in one
# training step under `sk.Probe`.

# %%
like_torch = dict(weight_var=weight_var, bias_var=bias_var, init="uniform")
widths = [64] * 11 + [10]
profile = sk.signal_profile(widths, "relu", **like_torch, inputs=batch[0], seeds=50)
patient = make()
with sk.Probe(patient, mode="exact") as probe:
    loss_fn(patient(batch[0]), batch[1]).backward()
own = [record for record in probe.records if record.kind == "linear"][:10]
own_back = np.array([record.grad_rms for record in own]) ** 2
own_fall = own_back[0] / own_back[-1]
print(f"the patient's gradient, mean square, first over last layer: {own_fall:.0e}")
#> the patient's gradient, mean square, first over last layer: 2e-07

# %% [markdown]
# `profile` holds one number for each network and layer. Prediction and measurement in one picture:

# %%
x, falls = np.arange(1, 11), chi ** np.arange(9.0, -1, -1)
squares = profile.preactivation[:, :10]
apart = squares * (1 - profile.correlation[:, :10])
back = profile.gradient[:, :10] / profile.gradient[:, 9].mean()
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.6))
sk.plots.profile(left, lengths, squares, label="all of it", predicted_label=None)
sk.plots.profile(left, differs, apart, label="what differs", color="C1")
sk.plots.profile(right, falls, back, label="networks")
left.plot(x, [record.rms**2 for record in own], "C2x", label="the patient, all of it")
right.plot(x, own_back / own_back[-1], "C2x", label="the patient")
for ax, what in ((left, "pre-activations"), (right, "gradient")):
    ax.set(xlabel="hidden layer", ylabel=f"mean square of the {what}")
    ax.legend(loc="best")

# %% [markdown]
# <!--figure: name="signal-and-gradient-by-layer"
# alt="Two panels on logarithmic axes. Left: the mean square of the pre-activations falls over four layers and then stays level, while the part that differs from image to image goes on falling, over more than seven powers of ten. Right: the gradient falls in a straight line from the last hidden layer to the first. Points and the patient's crosses lie on or near the lines."
# caption="**The signal settles, but not on the image.** Lines: prediction, no number fitted. Points: mean over 50 networks with two standard errors; crosses: the patient. The gradient is relative to the last hidden layer. What differs is predicted to `0.19` at worst: images of digits are not quite unrelated, nor equally bright."-->
#
# Two things are seen. The mean square of the gradient in the first layer is a ten-millionth of that
# in the last hidden one. And the signal fools the eye: its mean square settles at `0.0063`, a harmless number. That is the
# biases alone, and they say the same for every image. What differs between images is gone.

# %%
fall = (back.mean(0)[0] / back.mean(0)[-1]) ** (1 / 9)
print(f"measured: each layer divides the gradient's mean square by {1 / fall:.1f}")
#> measured: each layer divides the gradient's mean square by 6.0
pairs = ((squares, lengths), (apart, differs))
misses = [abs(found.mean(0) / theory - 1).max() for found, theory in pairs]
print(f"largest error: all of it {misses[0]:.2f}, what differs {misses[1]:.2f}")
#> largest error: all of it 0.06, what differs 0.19

# Claim: In fifty networks like the patient the mean square of the gradient falls by the
# predicted factor of 6 a layer, to within 10 %.
assert abs(fall / chi - 1) < 0.1
# Claim: In each of ten layers the mean square of the signal is predicted to 15 %, and
# to 40 % the part that differs from image to image, while that part falls by more than
# seven powers of ten.
assert misses[0] < 0.15
assert misses[1] < 0.4 and differs[0] / differs[-1] > 1e7

# %% [markdown]
# ## The report before
#
# All of this is one call. It makes one training step under observation, compares, and undoes the
# step. The same text is what `python -m stabilitykit diagnose` prints in a terminal.

# %%
console = Console(soft_wrap=True, color_system=None)


def examine(model):
    diagnosis = sk.diagnose(model, batch, loss_fn)
    console.print(text(diagnosis))
    return diagnosis


before = examine(patient)
#> 2 findings (12 layers, loss 2.3)
#>
#> vanishing-signal at linears.0, warning
#>   amplitude at the last hidden layer, relative to the input's:
#>   measured 0.00013, expected 1, predicted for these weights 0.00012
#>   The scale of weights and biases explains it.
#>   Draw all weights again:
#>     sk.lsuv(model, batch)
#>   page: docs/signal/kaiming.md in stabilitykit's repository
#>
#> vanishing-gradient at linears.9, warning
#>   gradient at the first layer, relative to the last hidden one's:
#>   measured 0.00039, expected 1, predicted for these weights 0.00031
#>   The scale of weights and biases explains it.
#>   Draw all weights again:
#>     sk.lsuv(model, batch)
#>   page: docs/signal/vanishing-exploding.md in stabilitykit's repository

# %% [markdown]
# Two findings. Read them with the figure: both amplitudes (not squares) are far from 1, and the fall
# begins at the first place, seen in the direction of travel: forwards at `linears.0`, backwards at
# `linears.9`. When all layers are alike, all are at fault. (Twelve layers: the activation counts as one.)
# A warning, not an error: with such numbers one model trains slowly and another not at all, and one
# step cannot tell which. Beside each number stands what theory predicts of these very weights, from
# their sizes alone. The next section derives it.
#
# ## Name the cause
#
# Assume, as at the start of training, that
#
# 1. weights are independent, with mean 0 and variance $\sigma_w^2/n$; biases likewise, with
#    variance $\sigma_b^2$,
# 2. the layer is wide, so that a pre-activation $z$ is close to normal with mean 0 and variance $q_l$.
#
# A pre-activation is a sum of $n$ terms, so its variance is
# $q_{l+1} = \sigma_w^2\,\mathbb{E}[\mathrm{relu}(z)^2] + \sigma_b^2$. ReLU keeps $z$ where it is
# positive, which by symmetry is half of the mean square: $\mathbb{E}[\mathrm{relu}(z)^2] = q_l/2$.
# So **each ReLU halves the variance**, and the weights have to make up for it:
#
# $$q_{l+1} = \frac{\sigma_w^2}{2}\,q_l + \sigma_b^2.$$
#
# Backwards the slope is 1 for half of the values and 0 for the rest, so the gradient's mean square is
# multiplied by $\chi = \sigma_w^2\,\mathbb{E}[\mathrm{relu}'(z)^2] = \sigma_w^2/2$: the same factor, and
# also that by which a small difference between two images changes. All three stay level for
#
# $$\boxed{\begin{aligned} \sigma_w^2 &= 2, \quad \sigma_b^2 = 0: \\ \text{a gain of } \sqrt{\sigma_w^2} &= \sqrt 2 \end{aligned}}$$
#
# Torch's default has $\sigma_w^2 = 1/3$, so $\chi = 1/6$. The report gives amplitudes, which are the roots
# of mean squares: what differs at the tenth layer relative to the images, and what the gradient loses
# over nine layers.

# %%
lost, faded = before.findings
signal = (differs[-1] / batch[0].square().mean().item()) ** 0.5
gradient = chi**4.5
print(f"signal:   predicted {signal:.1e}, in the report {lost.measured:.1e}")
#> signal:   predicted 1.1e-04, in the report 1.3e-04
print(f"gradient: predicted {gradient:.1e}, in the report {faded.measured:.1e}")
#> gradient: predicted 3.2e-04, in the report 3.9e-04

ratios = lost.measured / signal, faded.measured / gradient
# Claim: Both amplitudes in the patient's report are predicted to a third, with no
# number fitted.
assert all(2 / 3 < ratio < 4 / 3 for ratio in ratios)

# %% [markdown]
# One network is not fifty: the patient's own weights make the difference.
#
# ## Cure it
#
# `sk.gain` computes the factor for any activation. The weights are drawn anew with it, as on the
# first page. Nothing else changes.

# %%
def scaled(model, gain):
    for linear in model.linears:
        torch.nn.init.normal_(linear.weight, std=gain / linear.in_features**0.5)
        torch.nn.init.zeros_(linear.bias)
    return model


gain = sk.gain("relu").forward
print(f"gain {gain:.4f}, n·Var(w) = {gain**2:.1f} instead of 1/3")
#> gain 1.4142, n·Var(w) = 2.0 instead of 1/3
healthy = scaled(make(), gain)

# %% [markdown]
# ## The report after

# %%
after = examine(healthy)
#> healthy (12 layers, loss 2.53)

# Claim: The report has two findings for the patient, and none once its weights have the
# gain of ReLU.
assert len(before.findings) == 2 and after.healthy

# %% [markdown]
# A report is about one moment. So train both, and look again at the end:

# %%
history["scaled by sk.gain"] = train_it(healthy)
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.2))
for name, run in history.items():
    axes[0].plot(range(1, 11), run.losses, "o-", ms=3, label=name)
    axes[1].plot(range(1, 11), run.test_accuracies, "o-", ms=3)
cured = history["scaled by sk.gain"].test_accuracies[-1]
print(f"the cured network: accuracy {cured:.1f}")
#> the cured network: accuracy 0.9
for ax, level in zip(axes, (np.log(10), 0.1)):
    sk.plots.prediction(ax, [1, 10], [level] * 2, "guessing", linestyle=":")
    ax.set(xlabel="epoch", ylim=(0, None))
axes[0].set_ylabel("training loss")
axes[1].set(ylabel="accuracy on unseen digits", ylim=(0, 1))
axes[0].legend(loc="center right")

# Claim: With the gain of ReLU the patient reads more than eight unseen digits in ten
# after ten epochs.
assert cured > 0.8

# %% [markdown]
# <!--figure: name="loss-and-accuracy"
# alt="Two panels against epoch, three runs each. The training loss of the patient stays level at both learning rates, that of the scaled network falls to near zero. The accuracy of the first two stays at one in ten; that of the scaled network rises to about nine in ten."
# caption="**One change, and the same network reads.** Digits, stochastic gradient descent, batches of 32, seed 0; learning rate `0.05` but for the second run, `0.5`. Dotted: guessing. One seed; [the first page](../index.md) trains ten of each kind, with the same verdict."-->

# %%
print("after training:", sk.diagnose(healthy, batch, loss_fn).findings or "healthy")
#> after training: healthy

# %% [markdown]
# The patient is well, and stays so.
#
# ## When the gain is not enough
#
# Put sigmoids in place of ReLUs, and give them *their* gain:

# %%
sigmoid = sk.gain("sigmoid")
print(f"gain forward {sigmoid.forward:.2f}, backward {sigmoid.backward:.2f}")
#> gain forward 1.85, backward 4.72
other = scaled(make("sigmoid"), sigmoid.forward)
found = examine(other)
#> 2 findings (12 layers, loss 3.01)
#>
#> vanishing-signal at linears.1, warning
#>   amplitude at the last hidden layer, relative to the input's:
#>   measured 0.000241, expected 1, predicted for these weights 0.000275
#>   The scale of weights and biases explains it.
#>   Replace the sigmoids between layers by nn.ReLU(), then draw all weights again:
#>     sk.lsuv(model, batch)
#>   page: docs/signal/kaiming.md in stabilitykit's repository
#>
#> vanishing-gradient at linears.9, warning
#>   gradient at the first layer, relative to the last hidden one's:
#>   measured 0.000171, expected 1, predicted for these weights 0.000179
#>   The scale of weights and biases explains it.
#>   Replace the sigmoids between layers by nn.ReLU(), then draw all weights again:
#>     sk.lsuv(model, batch)
#>   page: docs/signal/vanishing-exploding.md in stabilitykit's repository
print(f"accuracy {train_it(other, epochs=5).test_accuracies[-1]:.1f}")
#> accuracy 0.1

# Claim: Sigmoids with the gain that keeps their mean square stay at chance at the
# patient's depth.
assert not found.healthy
assert (other(data.test_x).argmax(1) == data.test_y).float().mean() < 0.2

# %% [markdown]
# For ReLU one number did three things. That was luck: $\mathrm{relu}(z) = z\,\mathrm{relu}'(z)$, so what
# keeps the signal keeps the gradient as well. A sigmoid wants a gain of `1.85` for its mean square and
# one of `4.72` for the gradient. And its mean square is mostly a constant near one half, squared, the
# same for every image. With the forward gain each layer multiplies differences and gradients by the
# square of the ratio of the two:

# %%
ratio = (sigmoid.forward / sigmoid.backward) ** 2
constant = 0.5**2 / sk.second_moment("sigmoid", 1.0)
print(f"share of the mean square that is constant: {constant:.0%}")
#> share of the mean square that is constant: 85%
print(f"χ = {ratio:.2f}, after nine layers an amplitude of {ratio**4.5:.0e}")
#> χ = 0.15, after nine layers an amplitude of 2e-04
measured = found.findings[-1].measured
print(f"in the report: {measured:.0e}")
#> in the report: 2e-04

# Claim: What the forward gain of a sigmoid costs the gradient is predicted to a factor
# of 1.5.
assert 2 / 3 < measured / ratio**4.5 < 3 / 2

# %% [markdown]
# That is as bad as the patient. The report's remedy is the right one: change the activation first.
#
# ## A rule for tomorrow
#
# **If a deep network stays at chance, ask for a report before you touch the learning rate; if all
# layers are at fault alike, scale the weights by the gain of the activation, and check that its
# forward and backward gains agree.**
#
# ## Exercises
#
# 1. The report's own remedy is `sk.lsuv(model, batch)`, which scales each layer by what it measures.
#    Which $n\,\mathrm{Var}(w)$ will it find for the patient? Then try.
# 2. Twice the variance to be on the safe side: $\sigma_w^2 = 4$. Predict by how much the amplitude grows
#    from the first hidden layer to the tenth. Does the network train? Does the report warn?
# 3. Does a network of eight linear layers train with torch's default weights? Would the report have
#    told you?
#
# <!--fold: Answers-->

# %%
third = make()
sk.lsuv(third, batch)
variances = [linear.weight.var().item() * 64 for linear in third.linears[1:10]]
print(f"1. n·Var(w) between {min(variances):.1f} and {max(variances):.1f}")
#> 1. n·Var(w) between 1.8 and 2.8
result = examine(third)
#> healthy (12 layers, loss 2.55)

# %% [markdown]
# About 2, as derived, and not the same everywhere: the call looks at its own draw, and at these images.

# %%
grown = sk.signal_profile(widths, "relu", weight_var=4.0, inputs=batch[0], seeds=50)
amplitudes = grown.preactivation.mean(0) ** 0.5
seen = amplitudes[9] / amplitudes[0]
print(f"2. predicted {2**4.5:.1f} times, measured {seen:.1f} times")
#> 2. predicted 22.6 times, measured 22.0 times
loud = scaled(make(), 2.0)
optimizer = torch.optim.SGD(loud.parameters(), lr=0.05)
for extra in ((), (optimizer,)):
    warned = sk.diagnose(loud, batch, loss_fn, *extra).findings
    print(*[finding.code for finding in warned] or ["healthy"])
#> healthy
#> update-too-large
stopped = train_it(loud).diverged is not None
print("training stopped at a loss that is not finite:", stopped)
#> training stopped at a loss that is not finite: True

# %% [markdown]
# A factor of $\sqrt 2$ a layer. Ten layers bear that, the learning rate does not; so give the call your
# optimiser, and it tries the step.

# %%
for linears in (3, 8):
    model = make(linears=linears)
    said = "healthy" if sk.diagnose(model, batch, loss_fn).healthy else "not healthy"
    accuracy = train_it(model).test_accuracies[-1]
    print(f"3. {linears} layers: {said}, accuracy {accuracy:.1f}")
#> 3. 3 layers: healthy, accuracy 0.9
#> 3. 8 layers: healthy, accuracy 0.1

# %% [markdown]
# It does not learn in these ten epochs, and the report is silent: it speaks up only at a factor of $e^6$
# and more, so as to raise no false alarm. A report without findings is no promise.
#
# <!--fold: end-->
#
# ## Read on
#
# - [Why does ReLU need twice the variance?](../signal/kaiming.md) The derivation at length.
# - [What is calculate_gain, and what should it be?](../signal/gain.md) Forward and backward gains of
#   other activations.
# - [What is wrong with my model?](index.md) The other findings.
#
# ## Sources
#
# - K. He, X. Zhang, S. Ren, J. Sun, *Delving deep into rectifiers*, 2015: the variance 2/n for ReLU.
# - S. Schoenholz, J. Gilmer, S. Ganguli, J. Sohl-Dickstein, *Deep information propagation*, 2017:
#   the factor χ for gradients and for small differences.
# - Y. Cho, L. Saul, *Kernel methods for deep learning*, 2009: what ReLU keeps of a product.
# - D. Mishkin, J. Matas, *All you need is a good init*, 2016: scaling by what is measured.
# - E. Alpaydin, C. Kaynak, *Optical recognition of handwritten digits*, 1998: the images, as shipped
#   with scikit-learn.
