"""The second U-Net sees t and Tweedie's posterior mean of it."""

import pytest
import torch

from n2s_utils.network import Architecture
from n2s_utils.report.two_steps import TwoStepUNet


@pytest.mark.parametrize("inputs", [3, 4])
def test_the_second_network_sees_the_noisy_picture_and_its_posterior_mean(inputs):
    torch.manual_seed(0)
    network, seen = TwoStepUNet(3, output_scale=10.0, inputs=inputs, width=6), []
    network.second.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    t = torch.randn(1, inputs, 32, 32)
    assert network(t).shape == (1, 3, 32, 32)
    noisy, posterior_mean, told = seen[0].split([3, 3, inputs - 3], 1)
    assert torch.equal(torch.cat([noisy, told], 1), t)
    torch.testing.assert_close(posterior_mean, noisy + 0.1**2 * network.first(t))  # deviation 1 / output_scale


def test_two_narrow_networks_have_the_parameters_of_one():
    one, two = (
        sum(p.numel() for p in Architecture(name=name, width=width).build(3).parameters())
        for name, width in (("unet", 48), ("two-steps", 34))
    )
    assert abs(two / one - 1) < 0.01
