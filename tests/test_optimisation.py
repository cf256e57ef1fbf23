"""The learning rate, the steps of Adam and the average of the weights."""

import math

import pytest
import torch
from conftest import tiny

from n2s_utils.network import Architecture
from n2s_utils.optimisation import Optimisation, Optimizer


def _rate(step, total=110, **changes):
    return tiny(learning_rate=1e-3, warmup=10, **changes).optimisation.rate(step, total)


def test_warm_up_then_cosine_to_zero():
    expected = {0: 1e-4, 4: 5e-4, 9: 1e-3, 10: 1e-3, 35: 1e-3 * (2 + math.sqrt(2)) / 4, 60: 5e-4, 110: 0}
    assert {step: _rate(step) for step in expected} == pytest.approx(expected)


def test_warm_up_then_one_step_to_a_tenth():
    expected = {0: 1e-4, 9: 1e-3, 10: 1e-3, 59: 1e-3, 60: 1e-4, 109: 1e-4}
    assert {step: _rate(step, schedule="step") for step in expected} == pytest.approx(expected)


def test_warm_up_then_constant():
    assert {_rate(step, schedule="constant") for step in (9, 60, 109)} == {1e-3}


def test_rate_is_full_until_the_length_is_known():
    assert [_rate(step, total=None) for step in (0, 9, 500)] == pytest.approx([1e-4, 1e-3, 1e-3])


def _optimizer(**changes):
    torch.manual_seed(0)
    return Optimizer(Architecture().build(1), Optimisation(crops=9, warmup=1, **changes))


def _loss(optimizer):
    return sum(parameter.square().sum() for parameter in optimizer.model.parameters())


def test_gradients_are_clipped():
    for clip, expected in ((1e-3, 1e-3), (1e9, None)):
        optimizer = _optimizer(clip=clip)
        norm = optimizer.step(_loss(optimizer), 0, 9)
        left = torch.cat([p.grad.flatten() for p in optimizer.model.parameters()]).norm().item()
        assert left == pytest.approx(expected or norm.item(), rel=1e-2) and norm > 1e-2


def test_a_step_uses_the_rate_of_its_number():
    for number in (0, 4, 8):
        optimizer = _optimizer(learning_rate=1e-3)
        before = [parameter.detach().clone() for parameter in optimizer.model.parameters()]
        optimizer.step(_loss(optimizer), number, 9)
        # Adam's first step is the rate itself, in the direction of the sign.
        moved = max((parameter - old).abs().max().item() for parameter, old in zip(optimizer.model.parameters(), before, strict=True))
        assert moved == pytest.approx(optimizer.settings.rate(number, 9), rel=1e-3)


def test_the_average_is_not_trained_and_begins_at_the_weights():
    optimizer = _optimizer()
    pairs = list(zip(optimizer.model.parameters(), optimizer.ema.parameters(), strict=True))
    assert all(torch.equal(ours, average) and not average.requires_grad for ours, average in pairs)


@pytest.mark.parametrize(("ema", "decays"), [(0.999, (2 / 11, 3 / 12, 4 / 13)), (0.2, (2 / 11, 0.2, 0.2))])
def test_average_follows_the_weights_quickly_at_first(ema, decays):
    """Its decay after step t is the smaller of `ema` and (1 + t) / (10 + t)."""
    optimizer = _optimizer(ema=ema)
    expected = optimizer.model.network.bottom[0].weight.detach().clone()
    for number, decay in enumerate(decays):
        optimizer.step(_loss(optimizer), number, 9)
        current, average = (net.network.bottom[0].weight.detach() for net in (optimizer.model, optimizer.ema))
        expected = decay * expected + (1 - decay) * current
        torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(average, current)


def test_a_state_goes_on_where_it_was():
    whole, part = _optimizer(), _optimizer()
    for number in range(4):
        whole.step(_loss(whole), number, 9)
        if number == 2:
            other = _optimizer()
            other.load_state_dict(part.state_dict())
            part = other
        part.step(_loss(part), number, 9)
    for ours, theirs in zip(whole.ema.parameters(), part.ema.parameters(), strict=True):
        assert torch.equal(ours, theirs)
