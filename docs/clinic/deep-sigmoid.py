# ---
# description: A deep sigmoid classifier that stays at chance on real images, brought to health by changing one thing at a time.
# ---

# %% [markdown]
# # Why do twenty sigmoid layers learn nothing?
#
# Here is a patient. Twenty layers, sigmoids behind all but the last, 64 units each, are to read
# handwritten digits. Nothing in the program is broken, and the images are as they should be. Yet ten
# epochs later the answers are right one time in ten, as if drawn from a hat.
#
# We treat it as a doctor would: look, measure, change **one** thing, look again. Some of the
# changes below do not help. They stay on the page, since ruling a cause out is half of finding
# the right one.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import torch

import stabilitykit as sk

torch.set_num_threads(1)
data = sk.digits()
train, test = (data.train_x, data.train_y), (data.test_x, data.test_y)
widths = [64, *19 * [64], 10]
loss_fn = torch.nn.functional.cross_entropy
print(f"{len(data.train_x)} images to learn from, {len(data.test_x)} to test on")
#> 1258 images to learn from, 539 to test on

# %% [markdown]
# These are scikit-learn's digits: 8 × 8 pixels, each standardised to mean 0 and variance 1, so
# the inputs are not the cause. One function makes a network, one trains it. Every treatment uses
# both, so that whatever differs is the treatment.

# %%
def make(activation, weight_var=None, seed=0):
    """A fresh network; `weight_var` is n·Var(w), None leaves torch's default."""
    torch.manual_seed(seed)
    model = sk.MLP(widths, activation)
    for linear in model.linears if weight_var else []:
        std = (weight_var / linear.in_features) ** 0.5
        torch.nn.init.normal_(linear.weight, std=std)
        torch.nn.init.zeros_(linear.bias)
    return model


def train_it(model, lr=0.1):
    run = dict(loss_fn=loss_fn, lr=lr, epochs=10, batch_size=64, progress=False)
    return sk.fit(model, train, test=test, **run)


# %% [markdown]
# ## The symptom

# %%
patient = make("sigmoid")
before = sk.diagnose(patient, train, loss_fn)
history = {"sigmoid": train_it(patient)}
print(f"loss {history['sigmoid'].losses[-1]:.1f}, that of guessing {np.log(10):.1f}")
#> loss 2.3, that of guessing 2.3
print(f"accuracy {history['sigmoid'].test_accuracies[-1]:.1f}")
#> accuracy 0.1

# Claim: A sigmoid network of twenty layers with torch's default weights stays at
# chance.
assert history["sigmoid"].test_accuracies.max() < 0.15

# %% [markdown]
# ## The report on admission
#
# One step before training, measured and undone again:

# %%
def report(diagnosis):
    for finding in diagnosis.findings:
        print(f"{finding.code} at {finding.layer}")
    for remedy in dict.fromkeys(finding.remedy for finding in diagnosis.findings):
        print(remedy.replace(": ", ":\n  "))
    if diagnosis.healthy:
        print("healthy")


report(before)
#> vanishing-signal at linears.0
#> vanishing-gradient at linears.18
#> Replace the sigmoids between layers by nn.ReLU(), then draw all weights again:
#>   `sk.lsuv(model, batch)`.
print("less than a millionth left:", all(f.measured < 1e-6 for f in before.findings))
#> less than a millionth left: True

# %% [markdown]
# Two findings, one remedy. Is it right? We check every word of it by hand, rule out what it does not
# name, and try the remedy.
#
# ## Is the learning rate too small?
#
# It is the first thing everybody tries, so let us rule it out. Ten times as much:

# %%
history["learning rate 1"] = train_it(make("sigmoid"), lr=1.0)
print(f"accuracy {history['learning rate 1'].test_accuracies[-1]:.1f}")
#> accuracy 0.1

# Claim: Ten times the learning rate leaves the deep sigmoid network at chance.
assert history["learning rate 1"].test_accuracies.max() < 0.15

# %% [markdown]
# No. Before turning more knobs, measure.
#
# ## What reaches the first layer?
#
# **Predict first.** Going back through one layer multiplies the mean square of the gradient by
#
# $$\chi = \sigma_w^2 \, \mathbb{E}\big[f'(\sqrt{q}\,z)^2\big], \qquad z \sim N(0, 1),$$
#
# where $\sigma_w^2 = n\,\mathrm{Var}(w)$ and $q$ is the variance of the pre-activations. Where it
# comes from is told in [what does a layer do to the variance?](../signal/variance-propagation.md)
# Torch's default draws weights and biases uniformly within $\pm 1/\sqrt{n}$, so $\sigma_w^2 = 1/3$
# and the biases have variance $1/(3n)$. The slope of a sigmoid is at most $1/4$. So $\chi$ cannot
# be large:

# %%
default = sk.MeanField("sigmoid", weight_var=1 / 3, bias_var=1 / (3 * 64))
factor = float(default.chi()) ** 0.5
print(f"the gradient over a layer: 1/{1 / factor:.2f}, over 18: {factor**18:.0e}")
#> the gradient over a layer: 1/7.08, over 18: 5e-16

# %% [markdown]
# **Then measure.** One backward pass over all training images, six networks from six seeds:

# %%
def gradients(model):
    """Root mean square of the gradient of each hidden layer's weights."""
    weights = [linear.weight for linear in model.linears[:-1]]
    slopes = torch.autograd.grad(loss_fn(model(train[0]), train[1]), weights)
    return [slope.square().mean().sqrt().item() for slope in slopes]


layers = np.arange(1, 20)
sick = np.array([gradients(make("sigmoid", seed=seed)) for seed in range(6)])
fig, ax = plt.subplots()
sk.plots.measurement(ax, layers, sick, "measured", center="median", spread=(5, 95))
predicted = np.median(sick[:, -1]) * factor ** (19.0 - layers)
sk.plots.prediction(ax, layers, predicted, "predicted")
ax.set(yscale="log", xlabel="hidden layer", xticks=range(1, 20, 2))
ax.set_ylabel("RMS gradient of its weights")
ax.legend()

# %% [markdown]
# <!--figure: name="gradients-of-the-patient"
# alt="On a logarithmic axis the gradient of the weights falls in a straight line from the last hidden layer to the first, over more than fifteen powers of ten; the measured points lie along the predicted line."
# caption="**The first layers hear nothing.** Points: median over 6 seeds with the band from the 5th to the 95th percentile, all 1258 training images. Line: the predicted factor per layer, pinned to the last hidden layer. The first layer lies above the line: its inputs are the images, which are larger than sigmoids."-->
#
# A step of gradient descent moves a weight by the learning rate times its gradient. Float32 carries
# seven digits, so a step this small is rounded away:

# %%
moved = [
    (after.weight != before.weight).float().mean().item()
    for after, before in zip(patient.linears, make("sigmoid").linears, strict=True)
]
print(f"weights changed in training: first layer {moved[0]:.0%}, last {moved[-1]:.0%}")
#> weights changed in training: first layer 0%, last 100%

# Claim: Ten epochs leave more than 99 in 100 weights of the first sigmoid layer as they
# were drawn.
assert moved[0] < 0.01

# %% [markdown]
# **The diagnosis is a vanishing gradient.** And the cause has a name and a size: the slope of the
# activation together with the scale of the weights.
#
# ## Are the weights too small?
#
# If each layer divides by 7, larger weights can multiply by 7. The backward gain asks for the
# weights that keep the gradient's size when the pre-activations have variance 1:

# %%
weight_var = sk.gain("sigmoid").backward ** 2
larger = make("sigmoid", weight_var)
first = gradients(larger)[0]
print(f"n·Var(w) = {weight_var:.1f} instead of 1/3")
#> n·Var(w) = 22.3 instead of 1/3
print(f"first layer's gradient: 10^{np.log10(first):.0f}")
#> first layer's gradient: 10^-5
history["larger weights"] = train_it(larger)
print(f"accuracy {history['larger weights'].test_accuracies[-1]:.1f}")
#> accuracy 0.1

# Claim: Weights matched to the sigmoid's slope raise the first gradient a millionfold.
assert first > 1e6 * np.median(sick[:, 0])
# Claim: With matched weights the deep sigmoid network still stays at chance.
assert history["larger weights"].test_accuracies.max() < 0.25

# %% [markdown]
# The gradient is back and the patient is no better. So there is a second cause. The gradient says
# how a weight should move; it does not say that the network can tell one image from another.
#
# ## What is left of the images?
#
# A sigmoid's output is never negative, its mean is near one half. That mean is the same for every
# image, and the next layer adds it up 64 times. Layer by layer, what images have in common grows
# at the cost of what tells them apart. How fast? By the same number as before: forwards, each layer
# multiplies the mean square of a small difference between two images by $\chi$, now taken at the
# variance $q$ at which the signal settles.

# %%
def apart(model):
    """Share of each layer's mean square that differs from image to image."""
    x, shares = train[0].double(), []
    for linear in model.double().linears[:-1]:
        z = linear(x)
        shares.append((z.var(0).mean() / z.square().mean()).item())
        x = model.activation(z)
    return shares


fig, ax = plt.subplots()
for color, weights in (("C0", None), ("C1", weight_var)):
    with torch.no_grad():
        shares = np.array([apart(make("sigmoid", weights, seed)) for seed in range(6)])
    field = sk.MeanField("sigmoid", weights, 0.0) if weights else default
    label = f"n·Var(w) = {weights:.1f}" if weights else "n·Var(w) = 1/3"
    how = dict(center="median", spread=(5, 95), color=color)
    sk.plots.measurement(ax, layers, shares, label, **how)
    predicted = np.median(shares[:, 1]) * field.chi() ** (layers[1:] - 2.0)
    sk.plots.prediction(ax, layers[1:], predicted, "predicted" if weights else None)
ax.set(yscale="log", ylim=(1e-15, 9), xlabel="hidden layer", xticks=range(1, 20, 2))
ax.set_ylabel("share that tells images apart")
ax.legend()

# %% [markdown]
# <!--figure: name="what-is-left-of-the-images"
# alt="Two falling curves on a logarithmic axis: with default weights the share that tells images apart drops by about fifty a layer, with larger weights by about two a layer; points follow the predicted lines, those of the larger weights a little below."
# caption="**All images become one.** Points: median over 6 seeds with the band from the 5th to the 95th percentile, float64. Lines: a factor χ per layer, pinned to the second layer, the first that sees sigmoids. The points of the larger weights end at about a third of their line, mostly because 64 units are few: χ is the factor of wide layers. Below 10⁻¹⁵, where the axis ends, they are lost in the rounding of float32, in which the network trains."-->

# %%
matched = sk.MeanField("sigmoid", weight_var, 0.0)
q, chi = matched.fixed_point(), matched.chi()
print(f"larger weights: q settles at {q:.1f}, where χ = {chi:.2f}")
#> larger weights: q settles at 8.5, where χ = 0.47
share = math.erfc(2 * math.acosh(10) / math.sqrt(2 * q))
records = sk.diagnose(make("sigmoid", weight_var), train, loss_fn).records
flat = [record.saturated for record in records if record.kind == "sigmoid"]
print(f"saturated: predicted {share:.2f}, measured {np.mean(flat[1:]):.2f}")
#> saturated: predicted 0.04, measured 0.04

# %% [markdown]
# So the gain kept its promise, and the promise was for $q = 1$. The network does not stay there:
# the sigmoid's mean pushes $q$ up to `8.5`. Few units are [saturated](../signal/saturation.md) there,
# with a slope below 1 % of the largest. But many lie far enough from zero for the mean square of the
# slope to be only `0.47` times that at $q = 1$; and this is $\chi$, since the weights were chosen to make
# it 1 there. **The second cause is an activation that is not centred at zero.**
#
# ## Is it the activation?
#
# The report proposes ReLU. Tanh is the smaller change: it is the sigmoid, stretched and centred,
# $\tanh(x) = 2\,\mathrm{sigmoid}(2x) - 1$. Torch's default weights again:

# %%
history["tanh"] = train_it(make("tanh"))
print(f"accuracy {history['tanh'].test_accuracies[-1]:.1f}")
#> accuracy 0.1
small = sk.MeanField("tanh", weight_var=1 / 3, bias_var=1 / (3 * 64))
print(f"each layer divides the gradient by {float(small.chi()) ** -0.5:.2f}")
#> each layer divides the gradient by 1.75

# Claim: Tanh with torch's default weights leaves twenty layers at chance.
assert history["tanh"].test_accuracies.max() < 0.25

# %% [markdown]
# Much better signals, and still no learning: `1.75` to the power 18 is more than twenty thousand.
# Each of the two changes fails alone. Together they leave one number to choose.
#
# ## Both
#
# For tanh without biases the edge of chaos lies at $\sigma_w^2 = 1$: there gradients neither vanish
# nor explode.

# %%
edge = float(sk.critical_weight_var("tanh"))
healthy = [train_it(make("tanh", edge, seed)) for seed in range(3)]
history["tanh at the edge"] = healthy[0]
accuracies = [h.test_accuracies[-1] for h in healthy]
print(f"n·Var(w) = {edge:.1f}, accuracy {np.mean(accuracies):.2f}, mean of 3 seeds")
#> n·Var(w) = 1.0, accuracy 0.94, mean of 3 seeds

# Claim: Tanh with weights at the edge of chaos reads digits with twenty layers, three
# seeds of three.
assert min(accuracies) > 0.9

# %% [markdown]
# ## And the report's own remedy?
#
# ReLU in place of the sigmoid, and then `sk.lsuv`, which draws all weights again and scales each layer
# until its outputs have variance 1. To the letter, at the rate of this page and at a shorter one:

# %%
def remedied(seed):
    model = make("relu", seed=seed)
    sk.lsuv(model, train)
    return model


def several(prepare, lr, seeds):
    return [train_it(prepare(seed), lr) for seed in range(seeds)]


rough = [run.test_accuracies for run in several(remedied, 0.1, 2)]
print("rate 0.1: each of two above 0.3 in some epoch:", all(a.max() > 0.3 for a in rough))
#> rate 0.1: each of two above 0.3 in some epoch: True
down = any(np.diff(a).min() < -0.1 for a in rough)
print("and one down by more than 0.1 from epoch to epoch:", down)
#> and one down by more than 0.1 from epoch to epoch: True
runs = several(remedied, 0.03, 3)
history["ReLU, sk.lsuv"] = runs[0]
worst = min(run.test_accuracies[-1] for run in runs)
print("rate 0.03: each of three above 0.5 at the end:", worst > 0.5)
#> rate 0.03: each of three above 0.5 at the end: True

# Claim: The remedy of the report takes the twenty layers from chance to more than five
# digits in ten at a rate of 0.03, three seeds of three.
assert worst > 0.5

# %% [markdown]
# It works, with a shorter step. At 0.1 these networks learn and lose some of it again, and rounding
# decides where ten epochs end. So the report was right in all it said; of the rate it said nothing.
# Tanh at the edge is another cure, and one that bears the rate of this page.
#
# ## The report on discharge
#
# The same step, before training, in a network with both changes, and in one with the report's remedy:

# %%
after = [sk.diagnose(m, train, loss_fn) for m in (make("tanh", edge), remedied(0))]
for diagnosis in after:
    report(diagnosis)
#> healthy
#> healthy

# Claim: The diagnosis finds a vanishing gradient in the twenty sigmoid layers before
# they train, and nothing in the tanh or ReLU layers that replace them.
assert "vanishing-gradient" in [f.code for f in before.findings]
assert all(diagnosis.healthy for diagnosis in after)

# %% [markdown]
# And all that was tried, side by side:

# %%
fig, ax = plt.subplots()
for place, (name, run) in enumerate(history.items()):
    every = (place % 4, 4)  # no two of the lines at chance have a marker at the same epoch
    style = "osD^"[place % 4] + "-"
    ax.plot(np.arange(1, 11), run.test_accuracies, style, ms=5, markevery=every, label=name)
ax.axhline(0.1, color="C7", ls=":", lw=1.2)
ax.set(ylim=(0, 1), xlabel="epoch", ylabel="accuracy on the test images")
ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)

# %% [markdown]
# <!--figure: name="all-treatments"
# alt="Accuracy by epoch for six runs: four lines lie on each other at one in ten, told apart by their markers; ReLU with sk.lsuv climbs unsteadily to about nine in ten, and tanh at the edge of chaos fast and above nine in ten."
# caption="**The patient, three treatments that fail, and two that work.** Test accuracy by epoch, seed 0, learning rate `0.1`, but 1 for the second run and `0.03` for the last; dotted: guessing. Four runs lie on each other; each has its markers at other epochs. Only the last two change both causes. Other seeds give other curves, the same verdict."-->
#
# ## A rule for tomorrow
#
# **If a deep network stays at chance, measure the gradient and the spread of the signal layer by
# layer before touching the learning rate; both must stay level.**
#
# ## Exercises
#
# 1. Predict, then try: how many hidden layers can torch's default tanh network have before it
#    stays at chance? Compare with its depth scale, `small.depth_scale()`.
# 2. What does the same treatment do to ReLU? Its own critical value is not 1. Try the learning rate
#    of all the others, and then 0.03.
# 3. Replace the sigmoid by $\mathrm{sigmoid}(x) - 1/2$. Is that enough, and with which weights?
#
# <!--fold: Answers-->

# %%
print(f"1. six depth scales: {6 * float(small.depth_scale()):.1f} layers")
#> 1. six depth scales: 5.4 layers
reached = []
for hidden in range(5, 11):
    torch.manual_seed(0)
    run = train_it(sk.MLP([64] * (hidden + 1) + [10], "tanh"))
    reached.append(run.test_accuracies[-1])
    print(f"{hidden} hidden layers: accuracy {reached[-1]:.1f}")
#> 5 hidden layers: accuracy 0.9
#> 6 hidden layers: accuracy 0.8
#> 7 hidden layers: accuracy 0.7
#> 8 hidden layers: accuracy 0.6
#> 9 hidden layers: accuracy 0.2
#> 10 hidden layers: accuracy 0.1
assert reached[0] > 0.8
assert reached[-1] < 0.25

# %% [markdown]
# A network is said to be trainable to about six depth scales. Here that is where the accuracy begins to
# fall. There is no sharp edge: in ten epochs eight layers still learn something, ten do not.

# %%
critical = float(sk.critical_weight_var("relu"))
print(f"2. critical n·Var(w) of ReLU: {critical:.1f}")
#> 2. critical n·Var(w) of ReLU: 2.0
for lr in (0.1, 0.03):
    runs = several(lambda seed: make("relu", critical, seed), lr, 2)
    best = min(run.test_accuracies.max() for run in runs)
    print(f"rate {lr:g}: both above 0.3 in some epoch: {best > 0.3}")
#> rate 0.1: both above 0.3 in some epoch: True
#> rate 0.03: both above 0.3 in some epoch: True
worst = min(run.test_accuracies[-1] for run in runs)
print("and, at 0.03, above 0.5 at the end:", worst > 0.5)
#> and, at 0.03, above 0.5 at the end: True

# %% [markdown]
# ReLU too learns at its critical value. At the rate of all the others the accuracy goes up and down, as
# with `sk.lsuv`, and a run may even end in an overflow. At 0.03 it climbs.

# %%
centred = train_it(make(lambda z: torch.sigmoid(z) - 0.5, 16.0))
print(f"3. n·Var(w) = 16: accuracy {centred.test_accuracies[-1]:.1f}")
#> 3. n·Var(w) = 16: accuracy 0.8

# %% [markdown]
# Yes, at the edge: the centred sigmoid is tanh again, $\tfrac12\tanh(x/2)$, whose slope at zero is
# $1/4$, so the edge lies at $4^2 = 16$.
#
# <!--fold: end-->
#
# ## Read on
#
# - [Why do sigmoids stop learning?](../signal/saturation.md) Slopes, and where units saturate.
# - [How deep can a plain network be?](../signal/edge-of-chaos.md) The critical value and the depth scale.
# - [`vanishing-gradient`](index.md#vanishing-gradient), the finding of this page, and the others.
#
# ## Sources
#
# - S. Schoenholz, J. Gilmer, S. Ganguli, J. Sohl-Dickstein, *Deep information propagation*, 2017:
#   the correlation map and the depth scale.
# - X. Glorot, Y. Bengio, *Understanding the difficulty of training deep feedforward neural
#   networks*, 2010: why deep sigmoids saturate.
# - E. Alpaydin, C. Kaynak, *Optical recognition of handwritten digits*, 1998: the images, as shipped
#   with scikit-learn.
