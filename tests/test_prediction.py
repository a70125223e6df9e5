"""Predicted second moments against closed forms and against networks that are drawn anew."""

import io
from contextlib import contextmanager

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional
from zoo import nets

import stabilitykit as sk
from scripts.benchmarks import prediction as benchmark
from stabilitykit._softmax import softmax_moments


def rows(model, batch):
    return {(r.layer, r.kind, r.call): r for r in sk.predict(model, batch).layers}


def test_one_linear_layer_and_relu_in_closed_form():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 5)), torch.randn(8, 30)
    found = rows(model, x)
    weights = [model[i].weight.double().square().mean().item() for i in (0, 2)]
    bias = model[0].bias.double().square().mean().item()
    q = weights[0] * x.double().square().sum(1).mean().item() + bias
    assert found["0", "linear", 0].forward == pytest.approx(q, rel=1e-9)
    assert found["1", "relu", 0].forward == pytest.approx(q / 2, rel=1e-6)
    assert found["1", "relu", 0].backward == pytest.approx(5 * weights[1], rel=1e-9)
    assert found["0", "linear", 0].backward == pytest.approx(5 * weights[1] / 2, rel=1e-6)
    assert found["2", "linear", 0].backward == 1
    assert all(row.modelled for row in found.values())


def snapshot(model):
    tensors = [*model.parameters(), *model.buffers()]
    hooks = [
        len(getattr(m, name))
        for m in model.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    ]
    modes = [m.training for m in model.modules()]
    return [t.detach().clone() for t in tensors], hooks, modes, torch.get_rng_state()


def same(before, after):
    assert all(map(torch.equal, before[0], after[0]))
    assert before[1:3] == after[1:3]
    assert torch.equal(before[3], after[3])


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("forward failed")


@pytest.mark.parametrize("tail", [nn.Identity(), Failing()])
def test_the_model_is_left_bit_identical(tail):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.5), tail
    )
    model[0].weight.grad = gradient = torch.ones_like(model[0].weight)
    x = torch.randn(4, 3, 8, 8)
    before = snapshot(model)
    kept = x.clone()
    if isinstance(tail, Failing):
        with pytest.raises(RuntimeError, match="forward failed"):
            sk.predict(model, x)
    else:
        sk.predict(model, x)
    same(before, snapshot(model))
    assert model[0].weight.grad is gradient
    assert bool((gradient == 1).all())
    assert torch.equal(x, kept)
    assert not x.requires_grad
    modules = torch.nn.modules.module
    assert not modules._global_forward_hooks
    assert not modules._global_forward_pre_hooks


def test_what_is_not_modelled_is_named_and_measured():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(20, 30), nn.Linear(30, 5)

        def forward(self, x):
            return self.two(torch.cumsum(functional.relu(self.one(x)), 1))

    torch.manual_seed(0)
    model, x = Odd(), torch.randn(16, 20)
    prediction = sk.predict(model, x)
    assert prediction.not_modelled == ("cumsum",)
    sums = functional.relu(model.one(x)).cumsum(1).detach().double()
    weight = model.two.weight.double().square().mean()
    expected = sums.square().sum(1).mean() * weight + model.two.bias.double().square().mean()
    last = prediction.layers[-1]
    assert last.forward == pytest.approx(expected.item(), rel=1e-6)


def test_bad_input():
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(TypeError, match=r"model='net' is not an nn.Module"):
        sk.predict("net", torch.ones(2, 3))
    with pytest.raises(TypeError, match="batch=None holds no tensor"):
        sk.predict(model, None)
    with pytest.raises(ValueError, match=r"batch has a tensor of shape \(0, 3\): it is empty"):
        sk.predict(model, torch.ones(0, 3))
    parts = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)])
    with pytest.raises(TypeError, match="batch has a nested tensor, of 2 parts; expected dense or"):
        sk.predict(model, parts)
    with pytest.raises(ValueError, match=r"parameter '0\.weight' has no values yet"):
        sk.predict(nn.Sequential(nn.LazyLinear(3)), torch.ones(2, 3))


def test_a_model_without_parameters():
    found = rows(nn.Sequential(nn.ReLU()), torch.tensor([[3.0, -4.0]]))
    assert found["0", "relu", 0].forward == pytest.approx(4.5)


AGREEMENT = {
    "20-layer perceptron, tanh": (256, 40, 10),
    "ResNet without normalisation": (64, 40, 10),
    "ResNet with batch norm": (64, 30, 10),
    "VGG-like": (96, 40, 20),
    "pre-norm transformer encoder": (64, 24, 8),
}


@pytest.mark.parametrize("name", AGREEMENT)
def test_prediction_agrees_with_networks_drawn_anew(name):
    """Within 5 % and three standard errors, at small widths; the benchmark has width 256."""
    width, seeds, predictions = AGREEMENT[name]
    ratios = benchmark.compare(benchmark.NETWORKS[name], width, seeds, predictions)
    for ratio in ratios:
        assert ratio.error < 0.06, ratio  # or the comparison would see nothing
        assert abs(ratio.ratio - 1) < 0.05 + 3 * ratio.error, ratio


def test_a_relu_perceptron_agrees_exactly_whatever_its_width():
    """Batched over 4,000 networks: for relu, He's product is exact at finite width."""
    torch.manual_seed(0)
    networks, width, depth = 4000, 32, 6
    x = torch.randn(4, width)
    linears = [nn.Linear(width, width, bias=False) for _ in range(depth)]
    for linear in linears:
        nn.init.normal_(linear.weight, 0, (2 / width) ** 0.5)
    layers = [m for linear in linears for m in (linear, nn.ReLU())]
    found = [row.forward for row in sk.predict(nn.Sequential(*layers), x).layers]
    scales = [linear.weight.square().mean().sqrt() for linear in linears]
    h, measured = x.expand(networks, 4, width), []
    for scale in scales:
        h = torch.bmm(h, scale * torch.randn(networks, width, width))
        measured.append(h.double().square().mean((1, 2)))
        h = h.relu()
        measured.append(h.double().square().mean((1, 2)))
    for expected, sample in zip(found, measured, strict=True):
        error = sample.std() / networks**0.5
        assert abs(sample.mean() - expected) < 4 * error
        assert error < 0.05 * expected


def test_the_comparison_sees_a_change_of_a_fifth():
    network = benchmark.NETWORKS["pre-norm transformer encoder"]
    ratios = benchmark.compare(network, 64, 10, 5, change=1.2)
    assert all(abs(r.ratio - 1) > 0.05 + 3 * r.error for r in ratios if r.kind == "layernorm")


def test_moments_of_softmax_against_plain_draws():
    generator = torch.Generator().manual_seed(5)
    for variance in (0.0, 0.25, 4.0):
        keys = torch.tensor([1, 2, 8, 16])
        shared, covariance, apart = softmax_moments(variance, keys)
        for i, n in enumerate(keys.tolist()):
            z = torch.randn(20_000, n, generator=generator, dtype=torch.float64)
            a = (variance**0.5 * z).softmax(1)
            u, v = torch.randn(2, 20_000, n, generator=generator, dtype=torch.float64)
            centred = u - (a * u).sum(1, keepdim=True)
            samples = (
                a.square().sum(1),
                (a * centred * v).sum(1).square(),
                (a * centred).square().sum(1),
            )
            for sample, value in zip(samples, (shared[i], covariance[i], apart[i]), strict=True):
                # both are means of draws: of 20,000 and of 1,024
                error = sample.std() * (1 / 20_000 + 1 / 1024) ** 0.5
                assert abs(sample.mean() - value) < 4 * error + 1e-12


@pytest.mark.parametrize("causal", [False, True])
def test_attention_over_many_draws_of_its_projections(causal):
    torch.manual_seed(0)
    width, tokens, draws = 64, 8, 300
    x = torch.randn(2, tokens, width) + torch.randn(2, 1, width)  # tokens agree by half

    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(width, 3 * width, bias=False)
            nn.init.normal_(self.qkv.weight, 0, 1.5 / width**0.5)
            self.end = nn.Identity()

        def forward(self, x):
            q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
            return self.end(y.transpose(1, 2).flatten(2))

    expected, measured = [], []
    for _ in range(draws):
        model = Mixing()
        if len(expected) < 10:
            expected.append(rows(model, x)["end", "identity", 0].forward)
        measured.append(model(x).double().square().mean())
    measured = torch.stack(measured).detach()
    error = measured.std() / draws**0.5
    expected = torch.tensor(expected, dtype=torch.float64)
    error = (error**2 + expected.var() / len(expected)) ** 0.5
    assert error < 0.03 * measured.mean()
    assert abs(expected.mean() - measured.mean()) < 0.05 * measured.mean() + 3 * error


def test_a_maximum_after_relu_passes_more_than_half_of_the_gradient():
    """Of four independent entries the largest is positive in 15 of 16 cases."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(64, 256, 1), nn.ReLU(), nn.MaxPool1d(4), nn.Flatten())
    nn.init.zeros_(model[0].bias)
    found = rows(model, torch.randn(16, 64, 64))
    conv, relu = found["0", "conv1d", 0], found["1", "relu", 0]
    assert relu.backward == pytest.approx(1 / 4)  # one of four receives all
    assert conv.backward / relu.backward == pytest.approx(15 / 16, rel=0.02)


def test_a_residual_sum_is_not_gaussian():
    """E[relu(relu(a) + b)²] = (3/4 + 1/(2π)) + 1/4 for standard normal a and b."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(100, 400), nn.Linear(100, 400)

        def forward(self, x):
            return functional.relu(functional.relu(self.a(x)) + self.b(x))

    torch.manual_seed(0)
    model = Sum()
    for linear in (model.a, model.b):
        nn.init.normal_(linear.weight, 0, 0.1)
        nn.init.zeros_(linear.bias)
        linear.weight.data /= 10 * linear.weight.data.square().mean().sqrt()
    x = functional.normalize(torch.randn(8, 100)) * 10
    found = rows(model, x)
    # In polar angles: relu(a) + b is b for a < 0 and √2·r·cos(φ) on 135 of 360 degrees for a > 0.
    exact = 3 / 8 * 2 + 1 / (2 * torch.pi) + 1 / 4
    assert found["", "relu", 1].forward == pytest.approx(exact, rel=2e-3)
    # b's gradient: P(b > 0, a < 0) + P(a + b > 0, a > 0) = 1/4 + 3/8; a's only where a > 0.
    assert found["b", "linear", 0].backward == pytest.approx(5 / 8, rel=5e-3)
    assert found["a", "linear", 0].backward == pytest.approx(3 / 8, rel=5e-3)


def test_zero_padding_is_counted_exactly():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False))
    x = torch.randn(2, 3, 5, 5)
    found = rows(model, x)["0", "conv2d", 0].forward
    patches = functional.unfold(x, 3, padding=1).double()
    weight = model[0].weight.double().square().mean()
    expected = patches.square().sum(1).mean() * weight
    assert found == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("samples", [2, 4, 8, 32])
def test_what_a_batch_norm_takes_of_a_gradient_that_is_the_same_at_all_positions(samples):
    """(1 − 1/N)(1 − 1/(N·P − 1)) is left, with entries that are exchangeable within a group."""
    positions, draws, width, outputs = 9, 20, 256, 2048
    shares = []
    for seed in range(draws):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(64, width, 1, bias=False), nn.BatchNorm2d(width),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, outputs),
        )  # fmt: skip
        x = torch.randn(samples, 64, 3, 3)
        found = rows(model, x)
        passed = found["0", "conv2d", 0].backward / found["1", "batchnorm2d", 0].backward
        variance = model[0](x).detach().double().var((0, 2, 3), correction=0)
        shares.append(passed / (1 / (variance + 1e-5)).mean())
    shares = torch.stack(shares)
    left = (1 - 1 / samples) * (1 - 1 / (samples * positions - 1))
    # the signs at the output are drawn once; by them the samples agree by about outputs^-1/2
    error = (shares.var() / draws + 2 / (samples**2 * outputs)) ** 0.5
    assert error < 0.04 * left
    assert abs(shares.mean() - left) < 3 * error


@pytest.mark.parametrize("samples", [2, 8, 32])
def test_after_a_batch_norm_the_border_is_farthest_from_the_mean(samples):
    """Of equal pictures, only what zero padding makes of the border is left after the norm."""
    x = 1 + 0.1 * torch.randn(samples, 3, 6, 6, generator=torch.Generator().manual_seed(2))

    def build(width):
        model = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.Tanh(),
            nn.Conv2d(width, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        return benchmark.drawn(model)

    ratios = benchmark.compare(benchmark.Network(build, lambda: x), 48, 60, 60)
    for ratio in ratios:
        assert ratio.error < 0.05, ratio
        assert abs(ratio.ratio - 1) < 0.05 + 2 * ratio.error, ratio


def test_a_tied_head_is_not_taken_for_independent():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
            self.head.weight = self.table.weight

        def forward(self, x):
            return self.head(self.table(x))

    prediction = sk.predict(Tied(), torch.randint(0, 20, (4, 6)))
    assert prediction.not_modelled == ("head (linear)",)
    assert [row.modelled for row in prediction.layers] == [True, False]


def test_what_was_computed_out_of_sight_is_named():
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.from_numpy(x.detach().numpy() * 3)

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 3

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 30), nn.Linear(30, 4)

        def forward(self, x):
            return self.two(Hidden.apply(self.one(x)))

    torch.manual_seed(0)
    model, x = Model(), torch.randn(32, 8)
    prediction = sk.predict(model, x)
    assert prediction.not_modelled
    inner = 9 * model.one(x).double().square().mean()
    weight = model.two.weight.double().square().mean() * 30
    bias = model.two.bias.double().square().mean()
    expected = (inner * weight + bias).item()
    assert prediction.layers[-1].forward == pytest.approx(expected, rel=1e-4)


def models():
    torch.manual_seed(0)
    linear = nn.Linear(8, 8)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return {
        "shared": (nn.Sequential(linear, nn.ReLU(), linear), torch.randn(4, 8)),
        "mlp": (sk.MLP([8, 16, 16, 2], "gelu"), torch.randn(4, 8)),
        "encoder": (encoder, torch.randn(4, 5, 8)),
        "evaluated": (encoder.eval(), torch.randn(4, 5, 8)),
        "recurrent": (nn.LSTM(8, 16, batch_first=True), torch.randn(4, 5, 8)),
        "bag": (nn.Sequential(nn.EmbeddingBag(9, 8), nn.Tanh()), torch.randint(0, 9, (4, 3))),
        "unfinished": (nn.Sequential(nn.Linear(8, 4), nn.Sigmoid()).bfloat16(),
                       torch.randn(4, 8).bfloat16()),
        "normed": (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)), nn.ELU()),
                   torch.randn(4, 8)),
        "frozen": (nn.Sequential(nn.Linear(8, 4), nn.SiLU()).requires_grad_(False),
                   torch.randn(4, 8)),
    }  # fmt: skip


@pytest.mark.parametrize("name", models())
def test_layers_are_named_as_the_probe_names_them(name):
    model, x = models()[name]
    prediction = sk.predict(model, x)
    with sk.Probe(model) as probe:
        model(x)
    ours = [(r.layer, r.kind, r.call) for r in prediction.layers]
    assert ours == [(r.layer, r.kind, r.call) for r in probe.records]
    assert all(r.forward > 0 and r.backward >= 0 for r in prediction.layers)


SPARSE = {
    "coo": torch.Tensor.to_sparse,
    "csr": torch.Tensor.to_sparse_csr,
    "csc": torch.Tensor.to_sparse_csc,
}


@pytest.mark.parametrize("layout", SPARSE)
def test_sparse_inputs_are_predicted_as_dense_ones(layout):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.randn(30, 50))
            self.two, self.three = nn.Linear(50, 40), nn.Linear(40, 6)

        def forward(self, x):
            return self.three(functional.relu(self.two(functional.gelu(x @ self.one))))

    torch.manual_seed(0)
    model = Model()
    x = torch.randn(16, 30) * (torch.rand(16, 30) < 0.2)
    sparse = SPARSE[layout](x)
    assert sparse.layout != torch.strided
    assert sk.predict(model, sparse) == sk.predict(model, x)
    assert torch.equal(sparse.to_dense(), x)


def test_a_product_with_a_sparse_graph_is_measured_and_named():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 64), nn.Linear(64, 4)

        def forward(self, x, edges):
            x = functional.relu(torch.sparse.mm(edges, self.one(x)))
            return self.two(x)

    torch.manual_seed(0)
    model, x = Graph(), torch.randn(20, 8)
    edges = (torch.rand(20, 20) < 0.2).float()
    dense, sparse = (
        sk.predict(model, ({"x": x, "edges": e}, None)) for e in (edges, edges.to_sparse())
    )
    assert sparse.not_modelled == dense.not_modelled == ("sparse_mm",)
    for row, other in zip(sparse.layers, dense.layers, strict=True):
        assert row.forward == pytest.approx(other.forward, rel=1e-5)
        assert row.backward == pytest.approx(other.backward, rel=1e-5)
    product = (edges @ model.one(x)).double().square().mean()
    assert sparse.layers[1].forward == pytest.approx(product.item() / 2, rel=0.05)


def test_sparse_weights_gradients_and_outputs():
    class Model(nn.Module):
        def __init__(self, sparse):
            super().__init__()
            self.table = nn.Embedding(30, 16, sparse=sparse)
            self.linear, self.sparse = nn.Linear(16, 8), sparse
            weight = torch.randn(5, 8) * (torch.rand(5, 8) < 0.5)
            self.weight = nn.Parameter(weight.to_sparse() if sparse else weight)

        def forward(self, x):
            x = functional.linear(torch.tanh(self.linear(self.table(x))), self.weight)
            return x.to_sparse() if self.sparse else x

    x = torch.randint(0, 30, (12,))
    torch.manual_seed(0)
    sparse = sk.predict(Model(True), x)
    torch.manual_seed(0)
    dense = sk.predict(Model(False), x)
    assert sparse.not_modelled == ("to_sparse",)
    for row, other in zip(sparse.layers, dense.layers, strict=True):
        assert row.forward == pytest.approx(other.forward, rel=1e-6)
        # behind what is measured, the output's signs are those of one draw
        assert row.backward == pytest.approx(other.backward, rel=0.01)


def test_nan_goes_on_as_nan():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    found = sk.predict(model, torch.full((2, 4), torch.nan)).layers
    assert all(row.forward != row.forward for row in found)


def test_the_table_lists_every_layer():
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(sk.predict(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.ones(2, 3)).table())
    text = console.export_text()
    assert "linear" in text
    assert "relu" in text


def written_in_part(h, weight):
    h = h * 1.0
    h[:, :40].add_(1.0)
    return h


def cut_in_part(h, weight):
    h = h * 1.0
    functional.relu_(h[:, :40])
    return h


@contextmanager
def outputs_of(*layers):
    """What layers give inside the context, in the order of their calls."""
    seen = []
    handles = [layer.register_forward_hook(lambda *call: seen.append(call[-1])) for layer in layers]
    yield seen
    for handle in handles:
        handle.remove()


UNUSUAL = {
    "written in part": written_in_part,
    "cut in part": cut_in_part,
    "detached": lambda h, weight: h.relu() + h.detach(),
    "transposed weight": lambda h, weight: (h @ weight) @ weight.T,
    "spectrum": lambda h, weight: torch.fft.ifft(2 * torch.fft.fft(h)).real,
    "slope": lambda h, weight: torch.autograd.grad(h.relu().square().sum(), h, create_graph=True)[
        0
    ],
    "square": lambda h, weight: h * h,
    "addcmul": lambda h, weight: torch.addcmul(h, h, h),
    "lerp": lambda h, weight: torch.lerp(h, h.relu(), 0.3),
    "skip over nothing but relu": lambda h, weight: h + h.relu(),
    "straight through": lambda h, weight: h + (h.round() - h).detach(),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_not_modelled_is_named_and_measured_both_ways(name):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = (nn.Linear(128, 128) for _ in range(3))
            self.weight = nn.Parameter(torch.randn(128, 128) / 128**0.5)

        def forward(self, x):
            return self.three(UNUSUAL[name](self.two(self.one(x)), self.weight))

    ratios = []
    for seed in range(8):
        torch.manual_seed(seed)
        model, x = Model(), torch.randn(64, 128)
        prediction = sk.predict(model, x)
        assert prediction.not_modelled
        with outputs_of(model.one, model.two, model.three) as seen:
            y = model(x)
        signs = torch.randint(0, 2, y.shape).mul(2.0).sub(1)
        slopes = torch.autograd.grad(y, seen, signs)
        predicted = {r.layer: (r.forward, r.backward) for r in prediction.layers}
        for layer, output, slope in zip(("one", "two", "three"), seen, slopes, strict=True):
            measured = [float(t.detach().double().square().mean()) for t in (output, slope)]
            ratios.append(torch.tensor(predicted[layer]) / torch.tensor(measured))
    mean = torch.stack(ratios).view(8, 3, 2).mean(0)
    # Three standard errors of eight draws where all samples share a mean, which has 128 weights.
    assert torch.allclose(mean, torch.ones(3, 2), atol=3 * (2 / 128 / 8) ** 0.5), mean


def test_what_runs_under_torch_func_is_named_and_measured():
    torch.manual_seed(0)
    model, (x, _) = nets.OneByOne(nets.stack([16, 48, 48])), nets.table()
    prediction = sk.predict(model, x)
    layers = ("model.0 (linear)", "model.1 (relu)", "model.2 (linear)")
    assert prediction.not_modelled == (*layers, "head (what linear reads)")
    (head,) = prediction.layers
    given = model.model(x).detach().double().square().mean().item()
    weight, bias = (p.detach().double().square().mean().item() for p in model.head.parameters())
    assert head.forward == pytest.approx(48 * weight * given + bias, rel=1e-6)


class Sampled(nn.Module):
    """A mean plus noise, as in a variational autoencoder, and a state that starts at zero."""

    def __init__(self, width=256):
        super().__init__()
        self.mean, self.step = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        mean = self.mean(x)
        z = mean + 2 * torch.randn_like(mean)
        return self.step(z + self.step(z.new_zeros(z.shape)))


def test_what_only_has_the_shape_of_another_tensor_is_known():
    torch.manual_seed(0)
    model, x = Sampled(), torch.randn(512, 256)
    prediction = sk.predict(model, x)
    assert prediction.not_modelled == ()
    mean, first, last = prediction.layers
    weight, bias = (p.detach().double().square().mean().item() for p in model.step.parameters())
    assert first.forward == pytest.approx(bias, rel=1e-9)
    # The noise has a mean square of 4, within three standard errors of 512 · 256 draws.
    error = 3 * 4 * (2 / (512 * 256)) ** 0.5 * 256 * weight
    expected = 256 * weight * (mean.forward + 4 + bias) + bias
    assert last.forward == pytest.approx(expected, abs=error)
    assert last.amplitude == pytest.approx(last.forward**0.5, rel=0.05)


SPELLED = {
    "linear": (
        lambda h, m: functional.linear(input=h, weight=m.weight),
        lambda h, m: functional.linear(h, m.weight),
    ),
    "cat": (
        lambda h, m: torch.cat(tensors=[h, m.two(h)], axis=-1),
        lambda h, m: torch.cat([h, m.two(h)], -1),
    ),
    "add": (lambda h, m: torch.add(input=h, other=m.two(h)), lambda h, m: h + m.two(h)),
    "matmul": (lambda h, m: h.matmul(other=m.weight), lambda h, m: h @ m.weight),
    "sum": (lambda h, m: torch.sum(input=h, axis=1), lambda h, m: h.sum(1)),
    "quotient": (lambda h, m: torch.div(input=h, other=4.0), lambda h, m: h / 4.0),
}


class Applied(nn.Module):
    """A function between two layers, with a third layer and a matrix at hand."""

    def __init__(self, function, width=32):
        super().__init__()
        self.one, self.two = nn.Linear(16, width), nn.Linear(width, width)
        self.weight, self.function = nn.Parameter(torch.randn(width, width) / 4), function

    def forward(self, x):
        return self.function(self.one(x), self)


@pytest.mark.parametrize("name", SPELLED)
def test_arguments_may_be_spelled_out(name):
    found = []
    for function in SPELLED[name]:
        torch.manual_seed(0)
        found.append(sk.predict(Applied(function), torch.randn(8, 16)))
    assert found[0] == found[1]
    assert found[0].not_modelled == ()


def test_arguments_that_no_rule_knows_are_not_an_error():
    torch.manual_seed(0)
    x = torch.randn(8, 16)
    rounded = sk.predict(Applied(lambda h, m: torch.div(h, 2, rounding_mode="floor")), x)
    assert rounded.layers[0].backward == 0
    into = Applied(lambda h, m: torch.mul(h.detach(), 2, out=torch.empty(8, 32)))
    assert sk.predict(into, x).not_modelled == ("mul",)
    divided = sk.predict(Applied(lambda h, m: m.two(h / 0)), x)
    assert not torch.tensor(divided.layers[-1].forward).isfinite()


def test_log_sigmoid_is_an_activation_like_others():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.LogSigmoid(), nn.Linear(40, 5))
    prediction = sk.predict(model, torch.randn(8, 30))
    assert prediction.not_modelled == ()
    assert all(row.modelled for row in prediction.layers)


@pytest.mark.parametrize("foreign", [False, True])
def test_a_batch_norm_in_eval_mode_takes_off_the_mean_of_its_own_channels(foreign):
    """Or adds that of others, where its statistics are not those of these weights."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(32, 64, generator=generator) + 2 * torch.randn(1, 64, generator=generator)

    def normed(width):
        layers = []
        for inputs in (64, width, width):
            layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width, momentum=None), nn.ReLU()]
        model = benchmark.drawn(nn.Sequential(*layers, nn.Linear(width, width)))
        model(x)
        return model.eval()

    def build(width):
        model = normed(width)
        if foreign:
            model[1].load_state_dict(normed(width)[1].state_dict())
        return model

    for ratio in benchmark.compare(benchmark.Network(build, lambda: x), 128, 60, 20):
        assert ratio.error < 0.08, ratio
        assert abs(ratio.ratio - 1) < 0.05 + 3 * ratio.error, ratio


REPEATED = {
    "upsampled": lambda h, z: functional.interpolate(h, scale_factor=2.0),
    "overlapping windows": lambda h, z: functional.avg_pool2d(h, 3, 1, 1),
    "reflected": lambda h, z: functional.pad(h, (3, 3, 3, 3), mode="reflect"),
    "repeated": lambda h, z: h.mean((2, 3), keepdim=True).expand(-1, -1, 6, 6),
    "gated": lambda h, z: h * torch.sigmoid(z())[:, :, None, None],
    "shifted": lambda h, z: h + z()[:, :, None, None],
}


@pytest.mark.parametrize("name", REPEATED)
def test_gradients_that_agree_add_up_where_an_entry_is_read_in_many_places(name):
    """Behind a global average they are the same at all positions."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(8, 3, 6, 6, generator=generator)

    class Model(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.one, self.side = nn.Conv2d(3, width, 3, padding=1), nn.Linear(108, width)
            self.two, self.head = nn.Conv2d(width, width, 1), nn.Linear(width, width)

        def forward(self, x):
            h = REPEATED[name](torch.tanh(self.one(x)), lambda: self.side(x.flatten(1)))
            return self.head(functional.relu(self.two(h)).mean((2, 3)))

    network = benchmark.Network(lambda width: benchmark.drawn(Model(width)), lambda: x)
    ratios = benchmark.compare(network, 128, 40, 10)
    assert any(r.layer == "one" and r.direction == "backward" for r in ratios)
    for ratio in ratios:
        assert ratio.error < 0.06, ratio
        assert abs(ratio.ratio - 1) < 0.05 + 3 * ratio.error, ratio


def test_a_sum_of_positive_entries_is_positive():
    """So a relu behind it changes nothing."""

    class Summed(nn.Module):
        def __init__(self, last):
            super().__init__()
            self.one, self.last, self.two = nn.Linear(16, 256), last, nn.Linear(256, 8)

        def forward(self, x):
            return self.two(self.last(functional.relu(self.one(x)).sum(1)))

    found = []
    for last in (nn.Identity(), nn.ReLU()):
        torch.manual_seed(0)
        found.append(sk.predict(Summed(last), torch.randn(64, 12, 16)).layers)
    for plain, cut in zip(*found, strict=True):
        assert cut.forward == pytest.approx(plain.forward, rel=1e-3)
        # which entries a gradient meets is read from the pass, of 64 · 256 of them
        assert cut.backward == pytest.approx(plain.backward, rel=3 * (2 / (64 * 256)) ** 0.5)


def test_a_maximum_over_volumes_is_predicted():
    model = nn.Sequential(nn.Conv3d(2, 8, 3), nn.AdaptiveMaxPool3d(2), nn.Flatten())
    assert sk.predict(model, torch.randn(2, 2, 6, 6, 6)).not_modelled == ()


@pytest.mark.parametrize("masked", [False, True])
def test_a_vector_that_multiplies_scales_each_unit(masked):
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(2))

    class Model(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.one, self.two = nn.Linear(64, width), nn.Linear(width, width)
            self.scale = nn.Parameter(2 * torch.randn(width) * (torch.rand(width) < 1 - masked / 2))

        def forward(self, x):
            return self.two(torch.tanh(self.scale * self.one(x)))

    network = benchmark.Network(lambda width: benchmark.drawn(Model(width)), lambda: x)
    for ratio in benchmark.compare(network, 256, 40, 40):
        assert ratio.error < 0.05, ratio
        assert abs(ratio.ratio - 1) < 0.05 + 3 * ratio.error, ratio


def test_logits_with_a_bias_by_distance_are_named_and_measured():
    class Mixing(nn.Module):
        def __init__(self, slope):
            super().__init__()
            self.one, self.end, self.slope = nn.Linear(64, 192), nn.Linear(64, 64), slope
            self.attention = nn.MultiheadAttention(64, 4, batch_first=True)

        def forward(self, x):
            places = torch.arange(x.shape[1])
            bias = -self.slope * (places[:, None] - places).abs().float()
            q, k, v = self.one(x).chunk(3, -1)
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            return self.end(self.attention(y, y, y, attn_mask=bias, need_weights=False)[0])

    torch.manual_seed(0)
    x = torch.randn(8, 12, 64)
    assert sk.predict(Mixing(0.0), x).not_modelled == ()
    model = Mixing(2.0)
    prediction = sk.predict(model, x)
    assert prediction.not_modelled == (
        "scaled_dot_product_attention", "attention (multi_head_attention_forward)",
    )  # fmt: skip


AVERAGES = {
    "windows": lambda h: functional.relu(functional.avg_pool2d(h, 2)),
    "copies": lambda h: functional.relu(functional.interpolate(h, scale_factor=2.0)),
    "sums": lambda h: torch.tanh(0.1 * h.sum((2, 3), keepdim=True)),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_what_an_activation_behind_an_average_passes_depends_on_the_entries(name):
    """A relu behind an average passes all where one entry was positive."""
    x = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(2))

    class Model(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 1)

        def forward(self, x):
            return self.two(AVERAGES[name](functional.relu(self.one(x))))

    network = benchmark.Network(lambda width: benchmark.drawn(Model(width)), lambda: x)
    for ratio in benchmark.compare(network, 256, 40, 20):
        assert ratio.error < 0.06, ratio
        assert abs(ratio.ratio - 1) < 0.05 + 3 * ratio.error, ratio
