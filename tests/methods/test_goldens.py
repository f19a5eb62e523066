"""Worked examples of each method's formula, computed with numpy from the papers and their code; natural logs."""

import math
from types import SimpleNamespace

import pytest
import torch

from lvlm_guard import methods
from lvlm_guard.engine.method import Step
from lvlm_guard.errors import KnobError
from lvlm_guard.evals.decoders.published import DoLaOfficial, swapped_divergence
from lvlm_guard.methods import adaiat, vti
from lvlm_guard.methods.revis import moved, orthogonal
from lvlm_guard.methods.rudder import direction
from lvlm_guard.methods.vista import steered

L, OTHER = [2, 1.8, 0, -1], [2.5, 1, 0.5, -3]


def step(logits=L, t=1, early=()):
    """One row; `early` are the logits that the head reads from layers 0, 1, ..."""
    raw = torch.tensor([logits], dtype=torch.float64)
    states = [torch.tensor([each], dtype=torch.float64) for each in early]
    decoder = SimpleNamespace(lens=lambda hidden, norm=True: hidden, __len__=lambda: 8)
    text = SimpleNamespace(tie_word_embeddings=True)
    config = SimpleNamespace(get_text_config=lambda decoder: text)

    class Depth(SimpleNamespace):
        def __len__(self):
            return len(early) + 1

    call = SimpleNamespace(decoder=Depth(**vars(decoder)), model=SimpleNamespace(config=config), ids=None)
    return Step(raw, raw, torch.tensor([t]), [0], lambda row: [], call, hidden=lambda layer: states[layer])


def assembled(method, other=OTHER, **more):
    branches = None if other is None else (torch.tensor([other], dtype=torch.float64),)
    return method.assemble(step(**more), branches)[0]


def probabilities(found):
    return found.softmax(-1).tolist()


def close(found, expected):
    assert found == pytest.approx(expected, abs=1e-6)


def test_icd():
    close(probabilities(assembled(methods.ICD())), [0.241575, 0.725731, 0.032694, 0])
    close(probabilities(assembled(methods.ICD(alpha=0.5))), [0.369871, 0.580073, 0.050057, 0])


def test_m3id():
    close(assembled(methods.M3ID(gate=0.5)).tolist(), [-0.702864, -0.876602, -2.702864, -3.652360])
    close(assembled(methods.M3ID(gate=0.5), t=50).tolist(), [-1.357834, 0.675932, -3.357834, -0.062130])
    lp = torch.tensor(L, dtype=torch.float64).log_softmax(-1)
    close(assembled(methods.M3ID()).tolist(), lp.tolist())  # max p is .499: the gate is closed
    assert bool(methods.M3ID().decided(step()))
    assert not bool(methods.M3ID(gate=0.5).decided(step()))
    again = methods.M3ID(gate=None, first=0)
    close([float(again._weight(step(t=t))) for t in (1, 2, 51)], [0, 0.0202013, 1.7182818])


def test_pai_guides_log_probabilities():
    close(assembled(methods.PAI()).tolist()[:3], [-0.733643, -0.803643, -2.733643])
    close(probabilities(assembled(methods.PAI())), [0.483622, 0.450926, 0.065451, 0])
    close(assembled(methods.PAI(gamma=1.0)).tolist(), L)


def test_dola():
    found = assembled(methods.DoLa(candidates=(1,)), None, early=[[0, 2, 1, -1]])
    close(found.tolist()[:3], [1.745118, -0.454882, -1.254882])
    close(probabilities(found), [0.861631, 0.095471, 0.042898, 0])
    logits, early = [-1.7, -1.4, 1.6, 0.7], [[1.2, -2, -4.2, 5], [3.2, -1.2, -1.5, -1.3]]
    rows = [torch.tensor([each], dtype=torch.float64) for each in (logits, *early)]
    close([float(swapped_divergence(rows[0], each)) for each in rows[1:]], [0.346115, 0.305536])
    p, first, second = (each.log_softmax(-1)[0] for each in rows)
    for kind, chosen in ((methods.DoLa, second), (DoLaOfficial, first)):  # they choose different layers
        found = assembled(kind(candidates=(1, 2), beta=0.0), None, logits=logits, early=early)
        close(found.tolist(), (p - chosen).tolist())


@pytest.mark.parametrize(
    ("knobs", "depth", "tied", "states"),
    [
        ({}, 32, False, [0, 2, 4, 6, 8, 10, 12, 14]), ({}, 32, True, [2, 4, 6, 8, 10, 12, 14]),
        ({"candidates": "high"}, 32, False, [16, 18, 20, 22, 24, 26, 28, 30]), ({}, 4, True, [1]),
        ({"candidates": [1, 3]}, 4, True, [1, 3]),
    ],
)  # fmt: skip
def test_dola_s_candidates_are_the_release_s_at_its_depth(knobs, depth, tied, states):
    assert methods.DoLa(**knobs).states(depth, tied) == states


def test_deco():
    early = [[0.5, 2.5, 0, 0], [1, 1.2, 0.2, 0]]
    method = methods.DeCo(layers_from=1 / 3, layers_to=2 / 3)  # both of three layers but the last
    found = assembled(method, None, early=early)
    close(found.tolist()[:2], [2.230857, 2.954285])
    assert method.candidates(torch.tensor([L])).tolist() == [[True, True, False, False]]
    assert list(methods.DeCo().layers(SimpleNamespace(decoder=range(32)))) == list(range(19, 28))


def test_rudder():
    given = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])
    v = direction(given, given.norm(dim=-1))
    close(v[0].tolist(), [0.490261, 0.871576])
    close(direction(given, torch.ones(1, 2))[0].tolist(), [0.6, 0.8])
    h, method = torch.ones(1, 2), methods.RUDDER(floor=0.0)
    g = method.gate(h, v)
    close(float(g), 0.996266)
    close((h + 5 * g * v)[0].tolist(), [3.442154, 5.341607])
    axis = torch.tensor([[1.0, 0.0]])
    along = [method.gate(torch.tensor([[s, math.sqrt(1 - s * s)]]), axis) for s in (-1, -0.5, 0, 0.5, 1)]
    close([float(each) for each in along], [0.003015, 0.053981, 0.5, 0.946019, 0.996985])
    assert float(methods.RUDDER().gate(-axis, axis)) == pytest.approx(0.05)


def test_vista():
    x, v = torch.tensor([3.0, 4.0]), torch.tensor([0.0, -1.0])
    close(steered(x, v, 0.17).tolist(), [3.860023, 3.178085])
    close(steered(x, x, 0.17).tolist(), x.tolist())
    assert float(steered(x, v, 5.0).norm()) == pytest.approx(5.0)
    found = assembled(methods.VISTA(late_from=0.0, late_to=0.5), None, early=[OTHER])
    close(found.tolist(), [2.15, 1.56, 0.15, -1.6])


def test_revis():
    u = orthogonal(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.0]))
    close(u.tolist(), [0, 4])
    h = torch.tensor([3.0, 1.0])
    close(moved(h, u, 1.6, -0.5).tolist(), [3, 7.4])
    close(moved(h, u, 1.6, -0.31).tolist(), [3, 1])  # its risk is -.316228
    assert torch.equal(moved(h, u, 1.6, 1.0), h)


def test_vti():
    f = torch.tensor([[1.0, 0.0], [2.0, 0.0], [6.0, 0.0]])
    close(vti.direction(f).tolist(), [4, 0])
    close(vti.direction(-f).tolist(), [-4, 0])  # the most extreme one's part along u is positive
    x = torch.tensor([3.0, 4.0])
    close(vti.turned(x, torch.tensor([1.0, 0.0]), 0.9).tolist(), [3.265634, 3.786243])
    assert float(vti.turned(x, torch.tensor([0.0, 7.0]), 50.0).norm()) == pytest.approx(5.0)


def test_adaiat():
    row, answer = torch.tensor([0.5, 0.2, 0.2, 0.1]), torch.tensor([0, 0, 1, 1])
    for paper, expected in (
        (False, [0.263158, 0.105263, 0.421053, 0.210526]),
        (True, [0.135135, 0.054054, 0.540541, 0.27027]),
    ):
        factor = adaiat.factors(torch.tensor(0.15), torch.tensor(0.1), 6.0, paper)
        close((row.log() + factor.log() * answer).softmax(-1).tolist(), expected)
    close(float(adaiat.threshold(torch.tensor(0.25), torch.tensor(0.1), 0.5)), 0.175)
    assert float(adaiat.factors(torch.tensor(0.5), torch.tensor(1.0), 6.0)) == pytest.approx(1e-3)  # 1 - 3 is no weight
    same = torch.rand(5)
    close(adaiat.factors(same, same, 6.0).tolist(), [1.0] * 5)


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("icd", {"place": "nowhere"}), ("icd", {"beta": 2}), ("m3id", {"gate": 0}), ("m3id", {"lam": -1}),
        ("m3id", {"first": 2}), ("pai", {"gamma": 0.5}), ("pai", {"start": -1}), ("iat", {"layers_from": 0.9}),
        ("dola", {"candidates": "middle"}), ("deco", {"top_p": 0}),
        ("deco", {"layers_to": 2}), ("rudder", {"floor": 2}), ("rudder", {"alpha": -1}), ("vista", {"alpha": 2}),
        ("vista", {"late_from": 1.0}), ("revis", {"k": 2}), ("revis", {"tau": -2}),
        ("vti", {"alpha": -1}), ("adaiat", {"layers_from": 0.9}), ("adaiat", {"mode": "mine"}),
    ],
)  # fmt: skip
def test_a_knob_out_of_range_is_an_error_that_says_what_to_give(name, knobs):
    with pytest.raises(KnobError, match="give"):
        methods.REGISTRY.get(name)(**knobs)
