"""What a run may use of the machine it is on: device, precision, and their names for the records."""

import os
import platform
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from n2s_utils.cli import InputError

Module = TypeVar("Module", bound=nn.Module)
PRECISIONS = ("auto", "bf16", "fp32")
# What torch.cpu.get_capabilities calls the units: AVX512-BF16, AMX, and Arm's.
_BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16")


@dataclass(frozen=True)
class Machine:
    """Where and how fast a run goes, not what it computes: the one table of a configuration that is no part of its identity."""

    device: str = "cpu"  # or cuda; never guessed
    precision: str = "auto"  # autocast to bf16 where the device has units for it, else fp32; or one of the two by name
    compile: bool = False
    every: int = 250  # steps between checkpoints and rows of the metrics

    def __post_init__(self):
        if self.device not in ("cpu", "cuda"):
            raise InputError(f"device = {self.device!r}: choose one of cpu, cuda")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision = {self.precision!r}: choose one of {', '.join(PRECISIONS)}")
        if self.every < 1:
            raise InputError(f"every = {self.every}: give a number above 0")
        require_device(self.device)
        compilers = [os.environ.get("CXX", "c++"), "g++", "clang++"]
        if self.compile and not any(map(shutil.which, compilers)):
            raise InputError("compile = true: needs a C++ compiler such as g++, and there is none here; leave it out")


def require_device(device: str) -> str:
    """`device` (cpu or cuda) itself; raises InputError where it is cuda and this machine has none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device = 'cuda': this machine has no usable CUDA device; use cpu")
    return device


def has_bf16_units(device: str) -> bool:
    """Whether bf16 is computed on `device`, as PyTorch tells; elsewhere it is emulated, far slower than float32.

    A cap on the instruction set (ATEN_CPU_CAPABILITY=avx2, ONEDNN_MAX_CPU_ISA=AVX2) counts.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.backends.cpu.get_cpu_capability() == "AVX2" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(unit, False) for unit in _BF16_UNITS)


def precision_of(choice: str, device: str) -> str:
    """bf16 or fp32: the `choice` itself, or what "auto" comes to on `device`."""
    if choice != "auto":
        return choice
    return "bf16" if has_bf16_units(device) else "fp32"


def autocast(device: str, precision: str) -> AbstractContextManager:
    """The context in which a network computes with `precision` (bf16 or fp32)."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")


def memory_format_of(device: str, precision: str) -> torch.memory_format:
    """The layout of pictures in memory that is the faster one: channels_last, but for float32 on a CPU without AVX512."""
    slow = device == "cpu" and precision == "fp32" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return torch.contiguous_format if slow else torch.channels_last


def placed(model: Module, device: str, precision: str) -> Module:
    """The model on `device`, in the layout that is the faster one there."""
    return model.to(device).to(memory_format=memory_format_of(device, precision))  # type: ignore[call-overload]


def device_name(device: str) -> str:
    """The processor that `device` (cpu or cuda) is on this machine, in words, with its threads."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{[*models, platform.processor() or platform.machine()][0]}, {torch.get_num_threads()} threads"


def instruction_set(device: str) -> str:
    """What PyTorch computes with on `device`, such as "AVX2" or "AVX512, bf16 units"."""
    if device == "cuda":
        return "CUDA {}.{}".format(*torch.cuda.get_device_capability()) + ", bf16 units" * has_bf16_units(device)
    return torch.backends.cpu.get_cpu_capability() + ", bf16 units" * has_bf16_units(device)
