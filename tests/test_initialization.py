"""Each scheme has its variance and each layer its gain; LSUV gives unit variance."""

import math

import pytest
import torch
from torch import nn
from zoo import nets

import stabilitykit as sk


def mixed():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 64), nn.GELU(), nn.BatchNorm1d(64), nn.Linear(64, 64), nn.Tanh(),
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4),
    )  # fmt: skip


def outputs(model, x):
    found = {}

    def record(name, output):
        found.setdefault(name, output.var(correction=0).item())

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda m, i, out, name=name: record(name, out))
    model(x)
    return found


def test_every_layer_ends_at_unit_variance():
    model, x = mixed(), 30 * torch.randn(512, 8)
    report = sk.lsuv(model, x, tolerance=0.01)
    assert [entry.layer for entry in report] == ["0", "3", "5", "7"]
    assert all(abs(v - 1) <= 0.01 for v in outputs(model, x).values())
    # The input has variance 900; eight orthogonal columns share it among 64 rows: 112.5.
    assert 90 < report[0].before < 135
    assert report[0].steps == 1


def test_scaled_weights_stay_orthogonal():
    model = mixed()
    sk.lsuv(model, torch.randn(512, 8))
    product = model[3].weight @ model[3].weight.mT
    assert torch.allclose(product / product[0, 0], torch.eye(64), atol=1e-5)


def test_convolutions_and_batches_with_targets():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    x = torch.randn(32, 3, 8, 8)
    sk.lsuv(model, (x, torch.zeros(32)))
    assert all(abs(v - 1) <= 0.05 for v in outputs(model, x).values())


def test_buffers_modes_hooks_and_gradients_stay():
    model = mixed()
    buffers = [b.clone() for b in model.buffers()]
    sk.lsuv(model, torch.randn(64, 8))
    assert all(map(torch.equal, buffers, model.buffers()))
    assert model.training
    assert all(not m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (torch.zeros(16, 8), "layer '0': the variance of its output is 0 after 0 steps"),
        (torch.full((16, 8), float("nan")), "the variance of its output is nan"),
        (torch.randn(16, 7), "cannot be multiplied"),
    ],
)
def test_a_bad_batch_leaves_the_model_as_it_was(batch, said):
    model = mixed()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises((ValueError, RuntimeError), match=said):
        sk.lsuv(model, batch)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(not m._forward_hooks for m in model.modules())


def test_bad_arguments():
    with pytest.raises(ValueError, match="tolerance must be positive, got 0"):
        sk.lsuv(mixed(), torch.randn(4, 8), tolerance=0)
    with pytest.raises(ValueError, match="model=ReLU has no linear or convolutional layer"):
        sk.lsuv(nn.ReLU(), torch.randn(4, 8))
    with pytest.raises(TypeError, match=r"model=3 is not an nn\.Module"):
        sk.lsuv(3, torch.randn(4, 8))


class Residual(nn.Module):
    """Blocks with functional activations; the second one ends in a norm."""

    def __init__(self, width=64):
        super().__init__()
        self.start = nn.Linear(8, width)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = torch.tanh(self.start(x))
        for i, (inner, outer) in enumerate(zip(self.inner, self.outer, strict=True)):
            branch = outer(nn.functional.gelu(inner(x)))
            x = x + (self.norm(branch) if i == 1 else branch)
        return self.head(x)


def test_functional_activations_and_residual_branches_are_found_in_a_pass():
    torch.manual_seed(0)
    model, x = Residual(), 3 * torch.randn(4, 8)
    found = {e.layer: e for e in sk.initialize(model, "auto", x)}
    gelu = sk.gain("gelu").forward
    assert found["start"].activation == "tanh"
    # It reads the data, which no activation has made smaller.
    assert found["start"].gain == pytest.approx(1 / x.square().mean().sqrt().item(), rel=1e-5)
    assert [found[f"inner.{i}"].activation for i in range(3)] == ["gelu"] * 3
    assert [found[f"inner.{i}"].gain for i in range(3)] == pytest.approx([gelu] * 3)
    # Three blocks; the one whose branch ends in a norm is left alone.
    assert [found[f"outer.{i}"].branches for i in range(3)] == [3, 1, 3]
    assert found["outer.0"].gain == pytest.approx(3**-0.5)
    assert found["head"].activation == "linear"
    for name, entry in found.items():
        weight = model.get_submodule(name).weight
        assert entry.after == pytest.approx(weight.std(correction=0).item(), rel=1e-5)
        standard_errors = abs(entry.after / (entry.gain / weight.shape[1] ** 0.5) - 1)
        assert standard_errors < 4 / (2 * weight.numel()) ** 0.5
        assert not model.get_submodule(name).bias.any()


class Scaled(nn.Module):
    """Residual blocks x + scale·f(W x), in several ways to write the scale."""

    def __init__(self, blocks, scale, function=torch.relu, width=64, way="mul"):
        super().__init__()
        self.start = nn.Linear(8, width)
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.head, self.scale = nn.Linear(width, 4), scale
        self.function, self.way = function, way

    def forward(self, x):
        x = self.start(x)
        for linear in self.linears:
            branch = self.function(linear(x))
            if self.way == "mul":
                x = x + self.scale * branch
            elif self.way == "div":
                x = x + branch / (1 / self.scale)
            else:
                branch *= self.scale
                x = branch + x
        return self.head(x)


@pytest.mark.parametrize("way", ["mul", "div", "in place"])
@pytest.mark.parametrize(
    "scale", [2.0, nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.full((64,), 2.0))]
)
def test_a_branch_that_ends_in_an_activation_and_a_scale(scale, way):
    """Means add up: E[(Σ b)²] = N(1 − ρ) + N²ρ with ρ = 1/π for relu; then the scale."""
    model = Scaled(6, scale, way=way)
    report = sk.initialize(model, "auto", torch.randn(32, 8))
    divisor = 2 * (6 * (1 - 1 / torch.pi) + 36 / torch.pi) ** 0.5
    for entry in report[1:-1]:
        assert (entry.activation, entry.branches) == ("relu", 6)
        assert entry.gain == pytest.approx(2**0.5 / divisor, rel=1e-5)


def test_a_branch_that_is_small_enough_is_not_divided():
    report = sk.initialize(Scaled(4, 0.25), "auto", torch.randn(32, 8))
    assert [entry.branches for entry in report] == [1] * 6
    assert report[1].gain == pytest.approx(2**0.5)
    assert sk.initialize(Scaled(4, 0.0), "auto", torch.randn(32, 8))[1].branches == 1
    odd = sk.initialize(Scaled(4, 1.0, torch.tanh), "auto", torch.randn(32, 8))
    assert odd[1].gain == pytest.approx(sk.gain("tanh").forward / 2)  # an odd one has no mean


@pytest.mark.parametrize("blocks", [4, 32])
def test_the_sum_of_many_blocks_stays_of_order_one(blocks):
    torch.manual_seed(0)
    model, x = Scaled(blocks, 1.0, width=256), torch.randn(64, 8)
    sk.initialize(model, "auto", x)
    seen = []
    model.head.register_forward_pre_hook(lambda _, args: seen.append(args[0].square().mean()))
    model(x)
    assert 1 < seen[0].item() < 4  # e, for branches that grow with x and share no mean


def test_a_saturating_first_layer_is_met_at_q_1():
    """Its pre-activations have the second moment for which the gain is made."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 400), nn.Hardtanh(), nn.Linear(400, 400), nn.Hardtanh())
    x = 5 + 2 * torch.randn(400, 200)
    sk.initialize(model, "auto", x)
    first = model[0](x).square().mean().item()
    second = model[:3](x).square().mean().item()
    assert first == pytest.approx(1, rel=0.1)
    assert second == pytest.approx(1, rel=0.1)
    kaiming = sk.initialize(model, "kaiming", x)[0]
    assert kaiming.gain == pytest.approx(sk.gain("hardtanh").forward)


def test_in_place_sums_are_blocks_too():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            out = self.b(self.relu(self.a(x)))
            out += x
            return self.relu(out)

    model = nn.Sequential(Block(), Block())
    report = sk.initialize(model, batch=torch.randn(2, 4, 6, 6))
    assert [(e.layer, e.activation, e.branches) for e in report] == [
        ("0.a", "relu", 1), ("0.b", "relu", 2), ("1.a", "relu", 1), ("1.b", "relu", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("scheme", "variance", "uniform"),
    [
        ("kaiming", 2 / 200, False),
        ("kaiming_uniform", 2 / 200, True),
        ("xavier", 2 * 2 / 500, False),
        ("xavier_uniform", 2 * 2 / 500, True),
        ("lecun", 1 / 200, False),
    ],
)
def test_each_scheme_has_its_variance(scheme, variance, uniform):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 300), nn.ReLU())
    sk.initialize(model, scheme)
    weight = model[0].weight.detach().double()
    kurtosis = 9 / 5 if uniform else 3
    error = variance * ((kurtosis - 1) / weight.numel()) ** 0.5
    assert abs(weight.var(correction=0).item() - variance) < 4 * error
    assert (weight.abs().max() <= (3 * variance) ** 0.5 * (1 + 1e-6)).item() is uniform


def test_orthogonal_rows_have_the_gain():
    model = nn.Sequential(nn.Linear(60, 20), nn.Tanh())
    sk.initialize(model, "orthogonal")
    product = model[0].weight @ model[0].weight.mT
    assert torch.allclose(product, sk.gain("tanh").forward ** 2 * torch.eye(20), atol=1e-5)


def test_a_transposed_convolution_keeps_the_second_moment():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(64, 32, 4, stride=2))
    sk.initialize(model, "kaiming")
    x = torch.randn(16, 64, 12, 12)
    inner = model(x)[:, :, 4:-4, 4:-4]  # the border gets fewer terms
    assert inner.square().mean().item() == pytest.approx(1, rel=0.05)


def test_what_is_not_drawn_stays():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.unused = nn.Embedding(10, 8), nn.Linear(8, 8)
            self.mixing = nn.MultiheadAttention(8, 2, batch_first=True)
            self.hidden, self.head = nn.Linear(8, 8), nn.Linear(8, 10, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x):
            x = self.table(x)
            return self.head(torch.relu(self.hidden(x + self.mixing(x, x, x)[0])))

    model = Tied()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    model.hidden.weight.grad = gradient = torch.ones(8, 8)
    report = sk.initialize(model, batch=torch.randint(0, 10, (2, 5)))
    assert [e.layer for e in report] == ["hidden"]
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"hidden.weight", "hidden.bias"}
    assert model.hidden.weight.grad is gradient
    assert not torch.equal(torch.get_rng_state(), state)  # the draw is the caller's seed's


def test_the_order_of_modules_stands_in_for_a_batch():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 2))
    assert [(e.layer, e.activation) for e in sk.initialize(model)] == [
        ("0", "silu"), ("3", "linear"),
    ]  # fmt: skip


def test_initialize_refuses_and_leaves_the_model_as_it_was():
    model = Residual()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="scheme='kaimng' is unknown; did you mean 'kaiming'"):
        sk.initialize(model, "kaimng")
    with pytest.raises(TypeError, match="scheme=None is not a name"):
        sk.initialize(model, None)
    with pytest.raises(TypeError, match=r"model=3 is not an nn\.Module"):
        sk.initialize(3)
    with pytest.raises(ValueError, match="batch=None, and model=Residual has no activation module"):
        sk.initialize(model)
    with pytest.raises(ValueError, match="model=ReLU has no linear or convolutional layer"):
        sk.initialize(nn.ReLU())
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        sk.initialize(model, "auto", torch.randn(4, 7))
    dead = nn.Sequential(nn.Linear(2, 2), nn.Threshold(1e9, 0.0))
    kept = dead[0].weight.clone()
    with pytest.raises(ValueError, match="layer '0': activation threshold gives only zeros"):
        sk.initialize(dead, "auto", torch.ones(2, 2))
    assert torch.equal(dead[0].weight, kept)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_lsuv_scales_a_layer_for_the_first_use_that_varies():
    """The recurrent layer's first input is a state of zeros, of which it makes zeros."""
    torch.manual_seed(0)
    model = nets.Elman(bias=False)
    inputs, _ = nets.sequences(samples=256, length=12)
    assert {entry.layer for entry in sk.lsuv(model, inputs)} == {"i", "k", "head"}
    states = torch.tanh(model.i(inputs[:, 0]))
    assert model.k(states).var(correction=0).item() == pytest.approx(1, abs=0.05)


def test_layers_under_torch_func_stay():
    torch.manual_seed(0)
    model, batch = nets.OneByOne(nets.stack([16, 48, 48])), nets.table()
    before = {name: p.detach().clone() for name, p in model.model.named_parameters()}
    assert [entry.layer for entry in sk.lsuv(model, batch)] == ["head"]
    assert [entry.layer for entry in sk.initialize(model, "auto", batch)] == ["head"]
    assert all(torch.equal(p, before[name]) for name, p in model.model.named_parameters())


class Counting(nn.Module):
    """It changes more than buffers in place, and its second layer gives nothing."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.calls = nn.Linear(8, 8), nn.Linear(8, 8), 0
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.seen, self.calls = self.seen + 1, self.calls + 1
        return self.two(0 * self.one(x))

    def get_extra_state(self):
        return self.calls

    def set_extra_state(self, state):
        raise RuntimeError("not to be called")


def test_a_failed_lsuv_leaves_all_of_the_model_as_it_was():
    model = Counting()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="layer 'two': the variance of its output is 0"):
        sk.lsuv(model, torch.randn(16, 8))
    assert all(map(torch.equal, model.parameters(), before))
    assert (model.calls, model.seen.item()) == (0, 0.0)


@pytest.mark.parametrize("most", [-1, 2.5, None])
def test_lsuv_needs_a_count_of_steps(most):
    with pytest.raises(ValueError, match=f"max_steps={most} is not a whole number of 0 or more"):
        sk.lsuv(mixed(), torch.randn(4, 8), max_steps=most)


def test_parameters_without_values_are_refused():
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(9, 2))
    for function in (sk.lsuv, lambda model, x: sk.initialize(model, "auto", x)):
        with pytest.raises(ValueError, match=r"parameter '0\.weight' has no values yet"):
            function(model, torch.randn(4, 8))
    assert nn.parameter.is_lazy(model[0].weight)


def tied():
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.ReLU())
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize("batch", [None, torch.randn(64, 64)])
def test_layers_that_share_a_weight_are_one(batch):
    model = tied()
    (entry,) = sk.initialize(model, "kaiming", batch)
    assert (entry.layer, entry.activation) == ("0", "tanh")
    assert entry.after == pytest.approx(model[0].weight.std(correction=0).item(), rel=1e-5)


def test_lsuv_scales_a_shared_weight_once_and_transposed_convolutions():
    x = torch.randn(64, 64)
    model = tied()
    (entry,) = sk.lsuv(model, x)
    assert entry.layer == "0"
    assert entry.after == pytest.approx(outputs(model, x)["0"], rel=1e-5)
    up = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3))
    x = torch.randn(8, 3, 8, 8)
    assert [entry.layer for entry in sk.lsuv(up, x)] == ["0", "2"]
    assert up(x).var(correction=0).item() == pytest.approx(1, abs=0.05)


def test_slopes_of_their_own_are_met_with_their_mean():
    model = nn.Sequential(nn.Linear(8, 8), nn.PReLU(8, init=0.4), nn.Linear(8, 2))
    expected = sk.gain("leaky_relu", negative_slope=0.4).forward
    for batch in (None, torch.randn(4, 8)):
        entry = sk.initialize(model, "kaiming", batch)[0]
        assert (entry.activation, entry.gain) == ("prelu", pytest.approx(expected))


class Written(nn.Module):
    """Its activation is written by hand."""

    def __init__(self, function, width=400):
        super().__init__()
        self.function = function
        self.first, self.second = nn.Linear(400, width), nn.Linear(400, 400)

    def forward(self, x):
        return self.second(self.function(self.first(x)))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda z: z.clamp(min=0), "clamp"),
        (lambda z: torch.clamp_min(z, 0.0), "clamp_min"),
        (lambda z: torch.maximum(z, torch.zeros(())), "maximum"),
        (lambda z: torch.maximum(torch.zeros(1), z), "maximum"),
        (torch.sin, "sin"),
        (lambda z: torch.clip(input=z, min=-0.5, max=0.5), "clip"),
        (lambda z: nn.functional.rrelu(z, 0.1, 0.9, training=True), "rrelu"),
        (nn.functional.glu, "glu"),
    ],
)
def test_what_is_as_good_as_an_activation_is_met_with_its_gain(function, name):
    """E[f²] after the first layer, as Monte Carlo draws it, is 1 after the gain's square."""
    torch.manual_seed(0)
    model = Written(function, width=800 if name == "glu" else 400)
    x = torch.randn(500, 400)
    found = sk.initialize(model, "kaiming", x)
    assert [entry.activation for entry in found] == [name, "linear"]
    z = torch.randn(1000, 800, dtype=torch.float64)
    second = function(z if name != "maximum" else z.float()).double().square().mean().item()
    # 400,000 draws: their mean square is within 1 % at four standard errors.
    assert found[0].gain == pytest.approx(second**-0.5, rel=0.01)


@pytest.mark.parametrize("module", [nn.RReLU(0.1, 0.9), nn.GLU()], ids=["rrelu", "glu"])
def test_the_order_of_modules_knows_them_too(module):
    width = 16 if isinstance(module, nn.GLU) else 8
    model = nn.Sequential(nn.Linear(8, width), module, nn.Linear(8, 8))
    ordered = [(entry.activation, entry.gain) for entry in sk.initialize(model)]
    passed = sk.initialize(model, "kaiming", torch.randn(4, 8))
    assert ordered == [(entry.activation, entry.gain) for entry in passed]


def test_a_bound_for_each_unit_is_no_activation():
    torch.manual_seed(0)
    model = Written(lambda z: torch.maximum(z, torch.linspace(-1, 1, 400)))
    assert [e.activation for e in sk.initialize(model, batch=torch.randn(4, 400))] == ["linear"] * 2


@pytest.mark.parametrize("draw", [sk.initialize, sk.lsuv], ids=["initialize", "lsuv"])
def test_frozen_weights_and_those_of_an_embedding_stay(draw):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(50, 32)
            self.frozen, self.free = nn.Linear(32, 32), nn.Linear(32, 32)
            self.head = nn.Linear(32, 50)
            self.head.weight = self.embedding.weight
            self.frozen.requires_grad_(False)

        def forward(self, tokens):
            h = torch.relu(self.frozen(self.embedding(tokens)))
            return self.head(torch.relu(self.free(h)))

    torch.manual_seed(0)
    model = Tied()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    done = draw(model, batch=torch.randint(50, (64, 7)))
    assert [entry.layer for entry in done] == ["free"]
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"free.weight", "free.bias"}
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no linear or convolutional layer with a weight of its"):
        draw(model, batch=torch.randint(50, (64, 7)))


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_layer_without_entries_is_named():
    model = nn.Sequential(nn.Linear(8, 0), nn.ReLU(), nn.Linear(0, 4))
    before = model[2].bias.detach().clone()
    with pytest.raises(ValueError, match=r"layer '0': its weight has shape \[0, 8\]; expected"):
        sk.initialize(model)
    assert torch.equal(model[2].bias, before)


@pytest.mark.parametrize("last", [torch.relu, lambda z: z.clamp(max=5.0)], ids=["relu", "clamp"])
def test_a_branch_may_end_in_two_activations(last):
    """Relu first: what it adds to the sum has a mean, whatever is done to it next."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

        def forward(self, x):
            for layer in self.layers:
                x = x + last(torch.relu(layer(x)))
            return x

    torch.manual_seed(0)
    found = sk.initialize(Block(), "auto", torch.randn(16, 32))
    assert [entry.branches for entry in found] == [4] * 4
    # N branches that are relus of one pre-activation of variance 1: rho = 1/pi.
    divisor = (4 * (1 - 1 / math.pi) + 16 / math.pi) ** 0.5
    assert found[-1].gain == pytest.approx(math.sqrt(2) / divisor, rel=1e-6)
