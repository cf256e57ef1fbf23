"""Trained networks on disk: NAME.safetensors (float16) with its record NAME.json beside it."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from n2s_utils.cli import InputError
from n2s_utils.files import atomic_write, sha256
from n2s_utils.unet import OUTPUT_SCALE, UNet


def save_weights(state: dict[str, torch.Tensor], path: str | Path, record: dict) -> None:
    """Write a network's parameters as float16, and what made them (`record`, plus the file's SHA-256) as JSON."""
    path = Path(path)
    with atomic_write(path) as temporary:
        temporary.write_bytes(save({name: tensor.detach().cpu().half().contiguous() for name, tensor in state.items()}))
    with atomic_write(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(record | {"sha256": sha256(path)}, indent=2) + "\n")


def load_weights(path: str | Path, channels: int | None = None) -> UNet:
    """The network of a weights file, float32 and in evaluation mode, on the CPU.

    `channels` is what the pictures have (None: whatever the file has). Raises InputError if the file
    is missing, is no safetensors file, lacks its record or tensors, or is for another number of channels.
    """
    path = Path(path)
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such weights file; shipped ones are in data/weights") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None
    first = state.get("encoder.0.0.0.weight")
    model = UNet(first.shape[1] if first is not None and first.ndim == 4 else 3)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    wrong = sorted({n for n in shapes.keys() | state.keys() if n not in state or shapes.get(n) != state[n].shape})
    if wrong:
        raise InputError(f"{path}: not this U-Net; missing, unknown or misshapen: {', '.join(wrong[:3])} ({len(wrong)} tensors)")
    if channels not in (None, model.channels):
        raise InputError(f"{path}: for {model.channels} channel(s), the pictures have {channels}: use the other weights")
    model.load_state_dict(state)
    config = load_record(path).get("config", {})
    model.output_scale, model.relu_output = config.get("output_scale", OUTPUT_SCALE), config.get("relu_output", False)
    model.activation.width = config.get("kink_width", 0.0)
    return model.eval()


def load_record(path: str | Path) -> dict:
    """What made a weights file, from the JSON beside it; raises InputError if that is missing, broken or of another file."""
    record = Path(path).with_suffix(".json")
    try:
        content = json.loads(record.read_text())
    except FileNotFoundError:
        raise InputError(f"{record}: missing; weights come with the record of their training") from None
    except ValueError as error:
        raise InputError(f"{record}: not JSON ({error})") from None
    if not isinstance(content, dict) or content.get("sha256") != sha256(path):
        raise InputError(f"{record}: not the record of {Path(path).name} (another SHA-256); copy both from one run")
    return content
