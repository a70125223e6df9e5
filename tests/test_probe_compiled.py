"""A probe around an optimizer whose step is compiled: the same records, the same training."""

import pytest
import torch
from torch import nn

import stabilitykit as sk

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch.set_num_threads(1)
    yield
    torch._dynamo.reset()


class Training:
    """A small network and its optimizer, with the step as it is or compiled."""

    def __init__(self, kind, way="plain", backend="eager"):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
        self.x, self.y = torch.randn(32, 6), torch.randint(0, 3, (32,))
        self.optimizer = OPTIMIZERS[kind](self.model.parameters())
        self.step = self.optimizer.step
        if way == "method":
            self.step = torch.compile(self.optimizer.step, backend=backend)
        elif way == "function":
            self.step = torch.compile(lambda: self.optimizer.step(), backend=backend)

    def run(self, steps):
        for _ in range(steps):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(self.x), self.y).backward()
            self.step()
        return self

    def watched(self, steps, **options):
        with sk.Probe(self.model, self.optimizer, **options) as probe:
            self.run(steps)
        return probe.parameters

    def weights(self):
        return nn.utils.parameters_to_vector(self.model.parameters()).detach()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("way", ["method", "function"])
@pytest.mark.parametrize("ran", [0, 1])  # steps before the probe comes: compiled already or not
def test_a_compiled_step_is_recorded_as_the_plain_one(ran, way, kind, backend):
    found = Training(kind, way, backend).run(ran).watched(3, mode="exact")
    expected = Training(kind).run(ran).watched(3, mode="exact")
    assert len(found) == len(expected) == 3 * 4
    for mine, other in zip(found, expected, strict=True):
        assert (mine.step, mine.parameter) == (other.step, other.parameter)
        for name in ("grad_norm", "weight_norm", "update_ratio"):
            assert getattr(mine, name) == pytest.approx(getattr(other, name), rel=1e-4)
            assert getattr(mine, name) > 0


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("way", ["method", "function"])
def test_recorded_steps_run_eagerly_and_train_as_plain_ones(way, kind):
    watched, plain = Training(kind, way), Training(kind).run(3)
    watched.watched(3)
    assert torch.equal(watched.weights(), plain.weights())


@pytest.mark.parametrize("way", ["method", "function"])
def test_steps_between_recorded_ones_and_after_the_probe_are_compiled(way):
    graphs = []

    def counting(graph, _):
        graphs.append(graph)
        return graph

    training = Training("adamw", way, counting)
    assert {r.step for r in training.watched(1, every=2)} == {0}
    assert not graphs
    assert {r.step for r in training.watched(4, every=2)} == {0, 2}
    compiled = len(graphs)
    assert compiled > 0
    training.run(2)
    assert len(graphs) == compiled  # nothing is compiled again
    # A compiled step rounds in another order.
    assert torch.allclose(training.weights(), Training("adamw").run(7).weights(), atol=1e-5)


def test_two_probes_whose_recorded_steps_overlap_give_the_stance_back():
    """As on the two models of a GAN: the one that began to record first ends first."""
    one, two = Training("sgd"), Training("sgd")
    with sk.Probe(one.model, one.optimizer, every=2), sk.Probe(two.model, two.optimizer, every=2):
        for stance in ("force_eager", "default", "force_eager", "default"):
            assert torch._dynamo.eval_frame._stance.stance == stance
            one.run(1)
            assert torch._dynamo.eval_frame._stance.stance == "force_eager"
            two.run(1)
    assert torch._dynamo.eval_frame._stance.stance == "default"
