"""What is saved of a run: its checkpoint, whole or absent, and its metrics."""

import csv
import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from n2s_utils.cli import InputError
from n2s_utils.files import atomic_write


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a state of plain values and tensors, its SHA-256 first."""
    buffer = io.BytesIO()  # torch's own writer hides a full disk behind a RuntimeError
    torch.save(state, buffer)
    content = buffer.getvalue()
    with atomic_write(path) as temporary:
        temporary.write_bytes(hashlib.sha256(content).digest() + content)


def load(path: Path, device: str) -> dict[str, Any]:
    """The state in a checkpoint; raises InputError if it is corrupt or foreign."""
    stored = path.read_bytes()
    digest, content = stored[:32], stored[32:]
    if hashlib.sha256(content).digest() != digest:
        raise InputError(f"{path}: corrupt or not a checkpoint of ours; remove it to start anew")
    return torch.load(io.BytesIO(content), device, weights_only=True)


def write_metrics(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows of a run's log as CSV."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
