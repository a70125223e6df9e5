# ---
# description: A transformer encoder on real images that stays at chance, and the one number that says so before the first step.
# ---

# %% [markdown]
# # Why does this transformer never learn?
#
# The patient reads handwritten digits as eight tokens, one for each row of pixels. Four encoder layers
# with the normalisation after each addition, as in the first transformer; Adam; a learning rate that
# works for many a small network. It stays at chance. This page finds out why from one step, cures it,
# and then asks which of the usual remedies would have helped.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import stabilitykit as sk

torch.set_num_threads(1)
data = sk.digits()
train, test = (data.train_x, data.train_y), (data.test_x, data.test_y)
batch = data.train_x[:256], data.train_y[:256]
loss_fn = nn.functional.cross_entropy


class Reader(nn.Module):
    """Eight rows of pixels, a transformer encoder, ten digits."""

    def __init__(self, width=32, layers=4, norm_first=False):
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.place = nn.Parameter(torch.randn(8, width))
        options = dict(dropout=0.0, batch_first=True, norm_first=norm_first)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, **options)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, images):
        tokens = self.embed(images.unflatten(1, (8, 8))) + self.place
        return self.head(self.encoder(tokens).mean(1))


# %% [markdown]
# `make` builds a reader, `train_it` trains one with Adam and returns the accuracy on the test images
# after each epoch.

# %%
def make(seed=0, norm_first=False):
    torch.manual_seed(seed)
    return Reader(norm_first=norm_first)


def train_it(model, lr):
    run = dict(loss_fn=loss_fn, lr=lr, optimizer="adam", epochs=3, batch_size=64)
    return sk.fit(model, train, test=test, progress=False, **run).test_accuracies


history = {"patient": train_it(make(), lr=0.03)}
print(f"accuracy {history['patient'][-1]:.1f}")
#> accuracy 0.1

# Claim: At a learning rate of 0.03 the transformer with the norm after each addition
# stays at chance.
assert history["patient"].max() < 0.3

# %% [markdown]
# ## One step, before training
#
# The model is healthy. The model together with its optimiser is not:

# %%
for lr in (0.03, 0.001):
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    diagnosis = sk.diagnose(model, batch, loss_fn, optimizer)
    codes = [finding.code for finding in diagnosis.findings]
    print(f"lr {lr:g}:", *codes or ["healthy"])
#> lr 0.03: update-too-large
#> lr 0.001: healthy

# %% [markdown]
# ## How long is Adam's first step?
#
# Assume that
#
# 1. Adam starts with empty averages and corrects their bias, so after one step its direction is
#    $g/(|g| + \epsilon)$ for each weight,
# 2. no gradient is so small that $\epsilon$ matters,
# 3. the weights of a linear layer are uniform within $\pm 1/\sqrt{n}$, torch's default for $n$ inputs, so
#    their mean square is $1/(3n)$.
#
# By 1 and 2 every weight moves by the learning rate $\eta$, whatever its gradient. The norm of the
# change relative to the norm of the weights is then, by 3,
#
# $$\boxed{\;\frac{\lVert \Delta W \rVert}{\lVert W \rVert}
# = \frac{\eta}{\sqrt{1/(3n)}} = \eta\sqrt{3n}.\;}$$
#
# With $n = 32$ inputs and $\eta = 0.03$ that is about 30 %: one step changes such a layer by a third of
# its size. Attention's input weights are drawn by Xavier's rule over a stack of three, so for them the mean square
# is $2/(n + 3n)$ and the ratio $\eta\sqrt{2n}$. The probe measures it:

# %%
def first_step(lr):
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    with sk.Probe(model, optimizer, mode="exact") as probe:
        loss_fn(model(batch[0]), batch[1]).backward()
        optimizer.step()
    shapes = {name: p.shape for name, p in model.named_parameters()}
    weights = [r for r in probe.parameters if r.parameter.endswith("weight")]
    matrices = [r for r in weights if len(shapes[r.parameter]) == 2]
    return [(record, shapes[record.parameter][-1]) for record in matrices]


steps = first_step(lr=0.03)
fig, ax = plt.subplots()
measured = np.array([record.update_ratio for record, _ in steps])
stacked = np.array(["in_proj" in record.parameter for record, _ in steps])
inputs = np.array([n for _, n in steps])
predicted = 0.03 * np.sqrt(np.where(stacked, 2, 3) * inputs)
ax.plot(predicted, label="predicted, η√(3n) or η√(2n)")
ax.plot(measured, "C1o", label="measured")
ax.set(ylim=(0, 0.6), xticks=range(0, 18, 3), ylabel="relative change")
ax.set_xlabel("weight matrix, from the input on")
ax.legend(loc="lower right")

# %% [markdown]
# <!--figure: name="first-step-of-adam"
# alt="Relative change of eighteen weight matrices in the first step of Adam: points between 0.15 and 0.45 that lie on the predicted zigzag line."
# caption="**The first step changes each layer by a seventh to two fifths of its size, and one formula says so.** Adam, learning rate 0.03, 256 digits, seed 0. Each mark is one weight matrix; the zigzag comes from different fan-ins, the numbers n of inputs. The formula fails where gradients are exactly zero, and after the first step, when averages differ from the gradient."-->

# %%
error = np.abs(measured / predicted - 1).max()
# Claim: The length of Adam's first step relative to the weights is predicted to 15 %
# for every matrix.
assert error < 0.15

# %% [markdown]
# A common rule wants this ratio near 1/1000 (Karpathy, below). It is a convention, but one that says
# which way to go.
#
# ## The remedy of the report
#
# The report names a factor. It is read from the loss along the step: the first length in a row of
# tenths at which the loss goes down as its gradient promises.

# %%
model = make()
optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
remedy = sk.diagnose(model, batch, loss_fn, optimizer).findings[0].remedy
print(remedy.split(":")[0])
#> Multiply the learning rate by 0.01
history["remedy"] = train_it(make(), lr=0.03 * 0.01)
healthy = make()
history["a little more"] = train_it(healthy, lr=0.004)
print(f"accuracy {history['a little more'][-1]:.1f}")
#> accuracy 0.9
print("after training:", sk.diagnose(healthy, batch, loss_fn).findings or "healthy")
#> after training: healthy

# Claim: The remedy of the report takes the transformer from chance to more than a
# third.
assert history["remedy"][-1] > 1 / 3
# Claim: With a learning rate of 0.004 the same transformer reads eight digits in ten.
assert history["a little more"][-1] > 0.8

# %% [markdown]
# The factor is a power of ten, found from one step. Here it errs on the short side: a place to start
# from, not the best rate. [It can also err on the other](index.md#update-too-large).
#
# ## What else would have helped?
#
# The norm **before** each block leaves a path from output to input that no norm touches
# ([why skip connections help](../remedies/residual.md)). At the same bold rate:

# %%
history["norm first"] = train_it(make(norm_first=True), lr=0.03)
fig, ax = plt.subplots()
for name, accuracies in history.items():
    ax.plot(range(1, 4), accuracies, "o-", ms=3, label=name)
ax.axhline(0.1, color="C7", ls=":", lw=1.2)
ax.set(ylim=(0, 1), xticks=range(1, 4), xlabel="epoch")
ax.set_ylabel("accuracy on the test images")
ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)

# %% [markdown]
# <!--figure: name="transformer-treatments"
# alt="Accuracy by epoch for four runs: the patient stays at one in ten; the remedy rises slowly, a larger rate faster, and the network with the norm first learns at the patient's own rate."
# caption="**Two cures: a shorter step, or the norm in another place.** Digits, Adam, batches of 64, seed 0; dotted: guessing. The patient and the network with the norm first have the same learning rate, `0.03`; the remedy is a hundredth of it, a little more `0.004`."-->

# %%
# Claim: With the norm before each block the transformer bears the learning rate that
# ruined it.
assert history["norm first"].max() > 0.6

# %% [markdown]
# And clipping, which most recipes for transformers have? Adam divides by the gradient's own size, so a
# factor on all gradients cancels ([what Adam divides by](../descent/adaptive.md)) while $\epsilon$ is
# negligible; we take a small one, to see nothing else. Clipping to a thousandth:

# %%
clipped, plain = make(), make()
for model, limit in ((clipped, 1e-3), (plain, float("inf"))):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03, eps=1e-12)
    loss_fn(model(batch[0]), batch[1]).backward()
    nn.utils.clip_grad_norm_(model.parameters(), limit)
    optimizer.step()
apart = (clipped.head.weight - plain.head.weight).abs().max().item()
print("a step of 0.03 for each weight; changed by less than 1e-5:", apart < 1e-5)
#> a step of 0.03 for each weight; changed by less than 1e-5: True

# Claim: Clipping the first gradient to a norm of 1/1000 leaves Adam's first step as it
# was.
assert apart < 1e-5

# %% [markdown]
# So clipping does not shorten Adam's first step. Later it can help: where one batch's gradient is far
# larger than those that Adam remembers, clipping takes it down to theirs.
#
# ## A rule for tomorrow
#
# **Before training with Adam compute η√(3n): a first step of a tenth of the weights or more rewrites
# the network before the data have spoken. Shorten it, warm up, or put the norm first.**
#
# ## Exercises
#
# 1. Which learning rate does the formula allow for a ratio of 1/100 in a layer of 4096 inputs?
# 2. SGD with the same learning rate: how long is its first step here? Guess, then read it off.
# 3. What does the ratio become if the weights are drawn with Kaiming's rule?
#
# <!--fold: Answers-->

# %%
print(f"1. {0.01 / np.sqrt(3 * 4096):.0e}")
#> 1. 9e-05
model = make()
optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
with sk.Probe(model, optimizer, mode="exact") as probe:
    loss_fn(model(batch[0]), batch[1]).backward()
    optimizer.step()
weights = [r for r in probe.parameters if r.parameter.endswith("weight")]
print(f"2. at most {max(record.update_ratio for record in weights):.1%}")
#> 2. at most 0.9%
print(f"3. η√(n/2): {0.03 * np.sqrt(32 / 2):.2f} for 32 inputs")
#> 3. η√(n/2): 0.12 for 32 inputs

# %% [markdown]
# <!--fold: end-->
#
# ## Read on
#
# - [What do Adagrad, RMSprop and Adam divide by?](../descent/adaptive.md)
# - [`update-too-large`](index.md#update-too-large), the finding of this page, and the others.
#
# ## Sources
#
# - A. Vaswani et al., *Attention is all you need*, 2017: the norm after each addition, and the warm-up.
# - R. Xiong et al., *On layer normalization in the transformer architecture*, 2020: the norm before.
# - A. Karpathy, [notes of the course CS231n](https://cs231n.github.io/neural-networks-3/#ratio): the
#   ratio of 1/1000.
# - D. Kingma, J. Ba, *Adam: a method for stochastic optimization*, 2015.
# - E. Alpaydin, C. Kaynak, *Optical recognition of handwritten digits*, 1998: the images, as shipped
#   with scikit-learn.
