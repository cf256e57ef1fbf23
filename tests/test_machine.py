"""Device and precision: what is chosen, and that every objective computes in it, on a GPU too."""

import warnings
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from n2s_utils import machine, noise, objectives
from n2s_utils.network import Architecture
from n2s_utils.unet import KINKS

PRECISIONS = pytest.mark.parametrize("precision", ["bf16", "fp32"])


@pytest.mark.parametrize("units", [True, False])
def test_auto_is_bf16_where_there_are_units_and_only_there(monkeypatch, units):
    asked = []
    monkeypatch.setattr(machine, "has_bf16_units", lambda device: asked.append(device) or units)
    assert machine.precision_of("auto", "cpu") == ("bf16" if units else "fp32")
    assert asked == ["cpu"]
    assert [machine.precision_of(choice, "cpu") for choice in ("bf16", "fp32")] == ["bf16", "fp32"]


@pytest.mark.parametrize(
    ("capabilities", "cap", "onednn", "expected"),
    [
        ({"avx512_bf16": True}, "AVX512", True, True),
        ({"amx_bf16": True, "avx512_bf16": False}, "AVX512", True, True),
        ({"bf16": True}, "DEFAULT", True, True),  # Arm
        ({"avx512_bf16": False, "amx_bf16": False, "avx512_f": True}, "AVX512", True, False),
        ({}, "DEFAULT", False, False),
        ({"avx512_bf16": True, "amx_bf16": True}, "AVX2", True, False),  # ATEN_CPU_CAPABILITY=avx2
        ({"avx512_bf16": True, "amx_bf16": True}, "AVX512", False, False),  # ONEDNN_MAX_CPU_ISA=AVX2
    ],
)
def test_units_of_a_processor_are_those_that_pytorch_may_use(monkeypatch, capabilities, cap, onednn, expected):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: cap)
    assert machine.has_bf16_units("cpu") is expected
    assert machine.instruction_set("cpu") == cap + ", bf16 units" * expected


def test_units_of_a_gpu_do_not_count_emulation(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not machine.has_bf16_units("cuda")


def test_layout_is_contiguous_only_for_float32_on_an_old_processor(monkeypatch):
    layouts = {}
    for cap in ("AVX2", "AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda cap=cap: cap)
        for device in ("cpu", "cuda"):
            for precision in ("fp32", "bf16"):
                layouts[cap, device, precision] = machine.memory_format_of(device, precision)
    assert [key for key, layout in layouts.items() if layout is torch.contiguous_format] == [("AVX2", "cpu", "fp32")]


def test_a_processor_is_named_with_its_threads():
    assert machine.device_name("cpu").endswith(f", {torch.get_num_threads()} threads")


# Every objective, kink and precision: the loss is float32, and nothing refuses the types it is given.


def _loss(name: str, model: noise.Model, network, empty) -> torch.Tensor:
    """The loss on a batch that `empty` makes, as a training step computes it."""
    levels = {} if name in ("supervised", "noise2noise") else {"s_max": 0.5, "s_min": 0.1}
    objective = objectives.make(objectives.Settings(name, **levels), model, 0.1)
    c, second = empty(2, 3, 32, 32), empty(2, 3, 32, 32)
    score = partial(network, noise=model)
    if isinstance(objective, objectives.Regression):
        return objective.loss(score, c, second, model, *([empty(2, 1, 1, 1)] if levels else []))
    weight = partial(network.weight, noise=model) if objective.weighted else objectives.unweighted
    return objective.loss(score, c, second, empty(2, 1, 1, 1), weight)


def _assert_loss_and_gradients_are_float32(loss: torch.Tensor, network: torch.nn.Module) -> None:
    assert loss.shape == () and loss.dtype == torch.float32
    if not torch.is_grad_enabled():
        return
    loss.backward()
    assert {parameter.grad.dtype for parameter in network.parameters()} == {torch.float32}


@contextmanager
def _fake_cuda(precision: str):
    """Tensors without content on a GPU that is not there, under its autocast, which torch.autocast itself would switch off.

    Where PyTorch comes without CUDA there can be no gradients on it.
    """
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with FakeTensorMode(), torch.set_grad_enabled(torch.backends.cuda.is_built()):
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", precision == "bf16")
        try:
            yield partial(torch.empty, device="cuda")
        finally:
            torch.set_autocast_enabled("cuda", before[0])
            torch.set_autocast_dtype("cuda", before[1])


def _on_fake_cuda(network: torch.nn.Module, empty) -> torch.nn.Module:
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(empty(*parameter.shape), torch.is_grad_enabled()))
    return network


MODELS = [noise.Gaussian(25.0), noise.PoissonGaussian(0.05, 5.0), noise.Gamma(50.0)]


@PRECISIONS
@pytest.mark.parametrize("kink", KINKS)
@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_types_fit_together_on_a_gpu(monkeypatch, name, kink, precision):
    monkeypatch.setattr(noise, "check_not_negative", lambda *_: None)  # there are no values to check
    for model in MODELS[: 1 if name in ("r2r", "gr2r", "gr2r-supervised") else None]:
        network = Architecture(kink=kink).build(3)
        with _fake_cuda(precision) as empty:
            loss = _loss(name, model, _on_fake_cuda(network, empty), empty)
            assert loss.device.type == "cuda"
            _assert_loss_and_gradients_are_float32(loss, network)


def test_the_check_on_a_gpu_that_is_not_there_sees_wrong_types():
    """CUDA's autocast computes softplus in float32, where the processor's keeps bf16, and lerp refuses mixed types."""

    def rounded(x):
        return torch.lerp(x, F.softplus(x, 20), 0.9)

    with _fake_cuda("bf16") as empty:
        x = F.conv2d(empty(1, 3, 8, 8), empty(4, 3, 3, 3))
        assert x.dtype == torch.bfloat16
        with pytest.raises(RuntimeError, match="dtype"):
            rounded(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded(F.conv2d(torch.rand(1, 3, 8, 8), torch.rand(4, 3, 3, 3)))


@PRECISIONS
@pytest.mark.parametrize("kink", KINKS)
def test_types_fit_together_on_the_processor(kink, precision):
    network = Architecture(kink=kink).build(3)
    kinds = []
    network.network.bottom[0].register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    generator = torch.Generator().manual_seed(0)
    with machine.autocast("cpu", precision):
        for name in ("antithetic", "supervised"):
            _assert_loss_and_gradients_are_float32(
                _loss(name, noise.Gaussian(25.0), network, partial(torch.rand, generator=generator)), network
            )
    assert set(kinds) == {torch.bfloat16 if precision == "bf16" else torch.float32}


def test_autocast_of_float32_is_silent_and_off():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with machine.autocast("cpu", "fp32"):
            assert not torch.is_autocast_enabled("cpu")
        with machine.autocast("cpu", "bf16"):
            assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")


def test_placing_a_model_sets_its_layout():
    model = machine.placed(Architecture().build(3), "cpu", "bf16")
    assert model.network.bottom[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert isinstance(model, type(Architecture().build(3)))


def test_compiling_without_a_compiler_is_one_line(monkeypatch, refused):
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    with refused("compile = true", "C++ compiler"):
        machine.Machine(compile=True)
    assert machine.Machine(compile=False)
