# ---
# description: A convolutional network on real images whose units die in training, watched while they die and brought back.
# ---

# %% [markdown]
# # Why does this network say the same for every image?
#
# The patient is a small convolutional network that is to read handwritten digits. It starts well:
# the diagnosis before training is clean. After five epochs it gives the same answer to every
# image, and nothing is `nan`. We ask what happened, when, and what brings it back.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import stabilitykit as sk

torch.set_num_threads(1)
data = sk.digits()
train = data.train_x.view(-1, 1, 8, 8), data.train_y
test = data.test_x.view(-1, 1, 8, 8), data.test_y
batch = train[0][:256], train[1][:256]
loss_fn = nn.functional.cross_entropy


# %% [markdown]
# Three convolutions of 16 channels, a pooling layer, a linear layer; torch's default weights.

# %%
def make(seed=0, activation=nn.ReLU):
    torch.manual_seed(seed)
    layers = []
    for channels in (1, 16, 16):
        layers += [nn.Conv2d(channels, 16, 3, padding=1), activation()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10))


def train_it(model, lr, epochs=5):
    run = dict(loss_fn=loss_fn, lr=lr, epochs=epochs, batch_size=64, progress=False)
    return sk.fit(model, train, test=test, **run)


def report(model, *optimizer):
    for finding in sk.diagnose(model, batch, loss_fn, *optimizer).findings:
        share = finding.measured  # of some findings it is words
        said = share if isinstance(share, str) else f"{share:.0%}"
        print(f"{finding.code} at {finding.layer}: {said}")
        return finding
    print("healthy")


# %% [markdown]
# ## Before and after
#
# The learning rate is 2. That looks bold, yet the first step passes:

# %%
patient = make()
found = report(patient, torch.optim.SGD(patient.parameters(), lr=2.0))
#> healthy
run = train_it(patient, lr=2.0)
print(f"accuracy after five epochs: {run.test_accuracies[-1]:.1f}")
#> accuracy after five epochs: 0.1
found = report(patient)
#> dead-units at 4: 100%
print(found.remedy)
#> Draw that layer's weights again: `model.get_submodule('4').reset_parameters()`.

# Claim: Five epochs at a learning rate of 2 leave this network with a layer of dead
# units.
assert found.code == "dead-units"

# %% [markdown]
# A ReLU unit is **dead** on a set of inputs when its pre-activation is negative for all of them.
# What follows is short:
#
# 1. Its output is 0 for every input of the set.
# 2. Its slope is 0 for every input, so by the [chain rule](../backprop/chain-rule.md) the gradient
#    of each of its weights is a sum of zeros.
# 3. So gradient descent on that set does not move it, at any learning rate:
#
# $$\boxed{\;\begin{aligned}
# &w^\top x_i + b < 0 \ \text{ for all } i\\
# &\Longrightarrow\ \partial \ell / \partial w = 0,\ \partial \ell / \partial b = 0.
# \end{aligned}\;}$$
#
# A dead unit comes back only when the layers before it move, or an image comes that wakes it. When all units of a layer are dead, the
# layers before get no gradient either, and only the last bias still learns: how often each digit
# occurs. That is the same answer for every image.

# %%
patient.zero_grad()
loss_fn(patient(batch[0]), batch[1]).backward()
size = {name: p.grad.abs().max().item() for name, p in patient.named_parameters()}
print("no gradient at all:", *[name for name, largest in size.items() if largest == 0])
#> no gradient at all: 0.weight 0.bias 2.weight 2.bias 4.weight 4.bias 8.weight

# Claim: Where a whole layer is dead, only the last bias of the network still gets a
# gradient.
assert [name for name, largest in size.items() if largest > 0] == ["8.bias"]

# %% [markdown]
# ## When did they die?
#
# The probe records each step of a training, here the first epoch at two learning rates. A prediction
# first: with symmetric weights a channel starts negative on a whole batch only if it is negative at
# every place of every image, which is rare. So the share starts near 0, and what kills is a step.

# %%
def watch(lr, steps=20):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with sk.Probe(model, optimizer, mode="exact") as probe:
        for images, labels in zip(*(part.split(64) for part in train), strict=True):
            optimizer.zero_grad()
            loss_fn(model(images), labels).backward()
            optimizer.step()
    relus = [record for record in probe.records if record.kind == "relu"]
    return np.array([record.dead for record in relus]).reshape(-1, 3)[:steps]


fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.2), sharey=True)
deaths = {lr: watch(lr) for lr in (0.1, 2.0)}
for ax, (lr, dead) in zip(axes, deaths.items(), strict=True):
    for layer in range(3):
        ax.plot(dead[:, layer], "o-", ms=3, label=f"convolution {layer + 1}")
    ax.set(xlabel="step", title=f"learning rate {lr:g}", ylim=(-0.05, 1.05))
axes[0].set_ylabel("share of channels dead on the batch")
axes[0].legend()

# %% [markdown]
# <!--figure: name="when-units-die"
# alt="Two panels against the step, 0 to 19. At learning rate 0.1 no channel of any convolution dies. At learning rate 2 the first convolution lives; at step 5 the share jumps to about a half for the second, where it stays, and to more than a half for the third, where it goes up and down and never comes back below a half."
# caption="**One step kills half of the channels that follow the first layer.** First epoch, batches of 64, seed 0; a channel counts as dead when it is 0 at every place of every image of the batch. Measured by `sk.Probe` in exact mode. Each step has another batch, which may wake a channel: the third convolution goes up and down, but from then on half of its channels or more are off at any time."-->

# %%
print(f"dead at the start: {deaths[2.0][0].max():.0%}")
#> dead at the start: 0%

# Claim: At a rate of 2 more than a third of the last convolution is dead after twenty
# steps; at 0.1 not one channel of any.
assert deaths[2.0][-1, 2] > 1 / 3 and deaths[0.1].max() == 0

# %% [markdown]
# ## The remedy of the report
#
# Draw the weights of the dead layer again. The layer lives:

# %%
patient[4].reset_parameters()
found = report(patient)
#> healthy
again = train_it(patient, lr=2.0)
print(f"five more epochs at rate 2: accuracy {again.test_accuracies[-1]:.1f}")
#> five more epochs at rate 2: accuracy 0.1

# Claim: A dead layer that is drawn again dies again under the learning rate that killed
# it.
assert sk.diagnose(patient, batch, loss_fn).findings[0].code == "dead-units"

# %% [markdown]
# So the report was right about the state and could not know the cause: it saw one step, and the
# step that kills comes later. The cause is the rate. A fresh start at a twentieth of it:

# %%
fresh = [make(seed) for seed in range(3)]
accuracies = [train_it(model, lr=0.1).test_accuracies[-1] for model in fresh]
print(f"accuracy {np.mean(accuracies):.1f}, the mean of three seeds")
#> accuracy 0.9, the mean of three seeds
found = report(fresh[0])
#> healthy

# Claim: A fresh start at a rate of 0.1 reads more than eight digits in ten, three seeds
# of three.
assert min(accuracies) > 0.8

# %% [markdown]
# The patient itself was not cured: drawn again, it died again. Fresh networks at a twentieth of the
# rate are well. Three looks tell the story: healthy before, dead after, and healthy after a training
# with shorter steps.
#
# ## Would a leaky slope have saved it?
#
# With a slope of 0.01 below zero no gradient is exactly 0, so the theorem above does not apply. Put
# the dead network's weights under leaky units, and count the parameters that hear something:

# %%
dead = make()
train_it(dead, lr=2.0)
for name, activation in (("ReLU", nn.ReLU), ("leaky ReLU", nn.LeakyReLU)):
    model = make(activation=activation)
    model.load_state_dict(dead.state_dict())
    loss_fn(model(batch[0]), batch[1]).backward()
    heard = [bool(p.grad.any()) for p in model.parameters()]
    print(f"{name}: {sum(heard)} of {len(heard)} parameters get a gradient")
#> ReLU: 1 of 8 parameters get a gradient
#> leaky ReLU: 8 of 8 parameters get a gradient

# Claim: Under leaky units every parameter of the dead network gets a gradient.
assert all(heard)

# %% [markdown]
# They all hear something, though each dead unit passes only a hundredth of its gradient on. So is
# the training saved? Start with leaky units, at the rate that killed the others:

# %%
leaky = train_it(make(activation=nn.LeakyReLU), lr=2.0)
print("stopped at a loss that is not finite:", leaky.diverged is not None)
#> stopped at a loss that is not finite: True

# Claim: At a rate of 2 leaky units do not save this network: its loss overflows.
assert leaky.diverged is not None

# %% [markdown]
# No. The step was too long for both. Units that can die went silent, and by that ended the
# explosion; units that cannot die let it go on. A leaky slope mends the death, not its cause.
#
# ## A rule for tomorrow
#
# **If every input gets the same answer, look for dead units before you look at the data; then
# lower the learning rate and start afresh, since drawing a layer again treats the symptom.**
#
# ## Exercises
#
# 1. The first step passed at a rate of 2. At which rate between 0.1 and 2 does this network begin to
#    die? Guess, then try it with `watch`.
# 2. Does it help to clip the gradient's norm to 1/10 at rate 2?
# 3. Why does the theorem not apply to the [SiLU](../signal/gain.md)?
#
# <!--fold: Answers-->

# %%
dying = next(lr for lr in (0.1, 0.2, 0.4, 0.8, 1.6) if watch(lr)[-1, 2] > 0)
print(f"1. units die from a rate of about {dying:g}")
#> 1. units die from a rate of about 0.4
assert 0.1 < dying < 1

# %% [markdown]
# Far below the rate whose first step passed. The step that kills is a later one, from other weights: a
# diagnosis of the start says nothing of it.
#
# With the norm clipped to 1/10, no step at rate 2 is longer than 1/5:

# %%
clipped = make()
optimizer = torch.optim.SGD(clipped.parameters(), lr=2.0)
for _ in range(5):
    for images, labels in zip(*(part.split(64) for part in train), strict=True):
        optimizer.zero_grad()
        loss_fn(clipped(images), labels).backward()
        nn.utils.clip_grad_norm_(clipped.parameters(), 0.1)
        optimizer.step()
hits = (clipped(test[0]).argmax(1) == test[1]).float().mean()
print(f"2. more than eight in ten: {bool(hits > 0.8)}")
#> 2. more than eight in ten: True

# %% [markdown]
# **3.** The slope of ReLU is zero on a half-line, that of the SiLU at one point only. So the gradient
# of a SiLU unit is no sum of zeros, wherever its pre-activations lie. But far below zero its slopes
# are tiny, and a unit there is as good as dead.
#
# <!--fold: end-->
#
# ## Read on
#
# - [Why do two seeds train so differently?](../signal/seeds.md) Units that are born dead.
# - [What does clipping a gradient change?](../remedies/clipping.md) Why exercise 2 comes out as it does.
# - [What is wrong with my model?](index.md) The other findings.
#
# ## Sources
#
# - V. Nair, G. Hinton, *Rectified linear units improve restricted Boltzmann machines*, 2010.
# - A. Maas, A. Hannun, A. Ng, *Rectifier nonlinearities improve neural network acoustic models*,
#   2013: the leaky slope.
# - E. Alpaydin, C. Kaynak, *Optical recognition of handwritten digits*, 1998: the images, as shipped
#   with scikit-learn.
