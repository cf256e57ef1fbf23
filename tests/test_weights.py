"""Weights files: what comes back, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from n2s_utils.files import sha256
from n2s_utils.unet import UNet
from n2s_utils.weights import load_record, load_weights, save_weights


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    network = UNet(3)
    path = tmp_path / "colour.safetensors"
    save_weights(network.state_dict(), path, {"steps": 7, "config": {"crop": 64}})
    return network, path


def test_round_trip_is_float16(saved):
    network, path = saved
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    loaded = load_weights(path)
    assert not loaded.training and loaded.channels == 3
    for name, tensor in network.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.state_dict()[name], tensor.half().float())
    y = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(loaded(y), network(y), rtol=0.02, atol=0.02)


def test_channels_are_read_from_the_file(tmp_path):
    path = tmp_path / "grey.safetensors"
    save_weights(UNet(1).state_dict(), path, {})
    assert load_weights(path).channels == load_weights(path, channels=1).channels == 1


def test_record_lies_beside_with_the_hash(saved):
    path = saved[1]
    assert load_record(path) == {"steps": 7, "config": {"crop": 64}, "sha256": sha256(path)}
    assert json.loads(path.with_suffix(".json").read_text()) == load_record(path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["colour.json", "colour.safetensors"]


def test_saving_again_replaces_both(saved):
    path = saved[1]
    before = sha256(path)
    save_weights(UNet(3).state_dict(), path, {"steps": 8})
    assert load_record(path) == {"steps": 8, "sha256": sha256(path)} and sha256(path) != before


def test_missing_file(tmp_path, refused):
    path = tmp_path / "none.safetensors"
    with refused(path, "no such weights file"):
        load_weights(path)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x89PNG\r\n" + bytes(100)])
def test_file_that_is_not_safetensors(tmp_path, refused, content):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    with refused(path, "not a readable safetensors file"):
        load_weights(path)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_truncated_file(saved, refused, share):
    path = saved[1]
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with refused(path, "not a readable safetensors file"):
        load_weights(path)


def test_missing_tensor(saved, refused):
    path = saved[1]
    state = load_file(path)
    del state["bottom.0.bias"]
    save_file(state, path)
    with refused(path, "bottom.0.bias", "(1 tensors)"):
        load_weights(path)


def test_misshapen_and_unknown_tensors(saved, refused):
    path = saved[1]
    save_file(load_file(path) | {"bottom.0.bias": torch.zeros(47), "extra": torch.zeros(1)}, path)
    with refused(path, "bottom.0.bias", "extra", "(2 tensors)"):
        load_weights(path)


def test_weights_of_another_network(tmp_path, refused):
    path = tmp_path / "other.safetensors"
    save_file({"encoder.0.0.0.weight": torch.zeros(5)}, path)
    with refused(path, "not this U-Net"):
        load_weights(path)


@pytest.mark.parametrize(("has", "wants"), [(3, 1), (1, 3)])
def test_wrong_channels(tmp_path, refused, has, wants):
    path = tmp_path / "w.safetensors"
    save_weights(UNet(has).state_dict(), path, {})
    with refused(path, f"for {has} channel", f"have {wants}"):
        load_weights(path, channels=wants)


def test_missing_record(saved, refused):
    path = saved[1]
    path.with_suffix(".json").unlink()
    with refused(path.with_suffix(".json"), "missing"):
        load_record(path)


@pytest.mark.parametrize(
    ("content", "part"), [("{", "not JSON"), ("[1]", "not the record"), ('{"sha256": "of another file"}', "not the record")]
)
def test_broken_record_or_that_of_another_file(saved, refused, content, part):
    path = saved[1]
    path.with_suffix(".json").write_text(content)
    with refused(path.with_suffix(".json"), part):
        load_record(path)


def test_full_disk_keeps_the_old_weights(saved, full_disk):
    path = saved[1]
    before = {p: p.read_bytes() for p in path.parent.iterdir()}
    with full_disk(), pytest.raises(OSError, match="No space left"):
        save_weights(UNet(3).state_dict(), path, {"steps": 8})
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == before
