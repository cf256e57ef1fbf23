"""Trained networks on disk: NAME.safetensors (float16) with its record NAME.json beside it."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from n2s_utils.cli import InputError
from n2s_utils.files import CHECKOUT, ROOT, atomic_write, sha256
from n2s_utils.network import Architecture, ScoreNetwork
from n2s_utils.objectives import REGRESSIONS

SHIPPED = ROOT / "data" / "weights" if CHECKOUT else Path(__file__).with_name("shipped")  # a wheel brings those for every noise


def for_every_noise(channels: int) -> Path:
    """The shipped weights that serve every noise, for pictures of 1 or 3 channels."""
    return _shipped(channels, "gr2r")


def score_matching(channels: int) -> Path:
    """The same before their last stage, by score matching alone: where training on one's own pictures starts, with that loss."""
    return _shipped(channels, "antithetic")


def _shipped(channels: int, method: str) -> Path:
    return SHIPPED / f"{'grey' if channels == 1 else 'colour'}-{method}.safetensors"


def save_weights(state: dict[str, torch.Tensor], path: str | Path, record: dict) -> None:
    """Write a network's parameters as float16, and what made them (`record`, plus the file's SHA-256) as JSON.

    `record` must say `channels` and, in `config`, `network` (see network.Architecture): the file is loaded by it.
    """
    path = Path(path)
    with atomic_write(path) as temporary:
        temporary.write_bytes(save({name: tensor.detach().cpu().half().contiguous() for name, tensor in state.items()}))
    with atomic_write(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(record | {"sha256": sha256(path)}, indent=2) + "\n", encoding="utf-8")


def load_weights(path: str | Path, channels: int | None = None) -> ScoreNetwork:
    """The score network of a weights file, float32 and in evaluation mode, on the CPU, built as its record says.

    `channels` is what the pictures have (None: whatever the file has). Raises InputError if the file is missing, is no
    safetensors file, lacks its record or tensors, or is for another number of channels.
    """
    path = Path(path)
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such weights file; shipped ones are in data/weights") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None
    record = load_record(path)
    try:
        model = Architecture(**record["config"]["network"]).build(record["channels"])
        regression = record["config"].get("objective", {}).get("name") in REGRESSIONS
    except (KeyError, TypeError, AttributeError, InputError) as error:
        raise InputError(f"{path.with_suffix('.json')}: does not say which network the weights are of ({error})") from None
    shapes = {name: tensor.shape for name, tensor in model.network.state_dict().items()}
    wrong = sorted({n for n in shapes.keys() | state.keys() if n not in state or shapes.get(n) != state[n].shape})
    if wrong:
        raise InputError(
            f"{path}: not the network of its record; missing, unknown or misshapen: {', '.join(wrong[:3])} ({len(wrong)} tensors)"
        )
    if channels not in (None, model.channels):
        raise InputError(f"{path}: for {model.channels} channel(s), the pictures have {channels}: use the other weights")
    model.network.load_state_dict(state)
    model.regression = regression
    return model.eval()


def load_record(path: str | Path) -> dict[str, Any]:
    """What made a weights file, from the JSON beside it; raises InputError if that is missing, broken or of another file."""
    record = Path(path).with_suffix(".json")
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{record}: missing; weights come with the record of their training") from None
    except ValueError as error:
        raise InputError(f"{record}: not JSON ({error})") from None
    if not isinstance(content, dict) or content.get("sha256") != sha256(path):
        raise InputError(f"{record}: not the record of {Path(path).name} (another SHA-256); copy both from one run")
    return content
