"""Weights files: what comes back, and what is refused."""

import json

import pytest
import torch
from conftest import record_of
from safetensors.torch import load_file, save_file

from n2s_utils.files import sha256
from n2s_utils.network import NETWORKS, Architecture
from n2s_utils.noise import Gaussian
from n2s_utils.weights import load_record, load_weights, save_weights

ARCHITECTURE = Architecture(kink="softplus", kink_width=0.2, output_scale=3.0, deviation=0.3)
RECORD = record_of(ARCHITECTURE, 3) | {"steps": 7}


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = ARCHITECTURE.build(3)
    path = tmp_path / "colour.safetensors"
    save_weights(model.network.state_dict(), path, RECORD)
    return model, path


def test_round_trip_is_float16(saved):
    model, path = saved
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    loaded = load_weights(path)
    assert not loaded.training and loaded.channels == 3
    assert load_file(path).keys() == model.network.state_dict().keys()  # those of the network itself, without a prefix
    for name, tensor in model.network.state_dict().items():
        assert loaded.network.state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.network.state_dict()[name], tensor.half().float())
    c = 10 * torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(loaded(c, Gaussian(25.0)), model(c, Gaussian(25.0)), rtol=0.02, atol=0.02)


def test_the_network_is_built_as_the_record_says(saved):
    loaded = load_weights(saved[1])
    inner = loaded.network
    assert (inner.activation.kink, inner.activation.width, inner.output_scale, loaded.deviation) == ("softplus", 0.2, 3.0, 0.3)


def test_channels_are_read_from_the_record(tmp_path):
    path = tmp_path / "grey.safetensors"
    save_weights(Architecture().build(1).network.state_dict(), path, record_of(Architecture(), 1))
    assert load_weights(path).channels == load_weights(path, channels=1).channels == 1


@pytest.mark.parametrize("objective", ["antithetic", "supervised", "noise2noise", "gr2r", "gr2r-supervised"])
def test_weights_of_a_regression_say_so(tmp_path, objective):
    path, record = tmp_path / "grey.safetensors", record_of(Architecture(), 1)
    record["config"]["objective"] = {"name": objective}
    save_weights(Architecture().build(1).network.state_dict(), path, record)
    assert load_weights(path).regression == (objective != "antithetic")


def test_record_lies_beside_with_the_hash(saved):
    path = saved[1]
    assert load_record(path) == RECORD | {"sha256": sha256(path)}
    assert json.loads(path.with_suffix(".json").read_text()) == load_record(path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["colour.json", "colour.safetensors"]


def test_saving_again_replaces_both(saved):
    path = saved[1]
    before = sha256(path)
    save_weights(ARCHITECTURE.build(3).network.state_dict(), path, {"steps": 8})
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
    _renew_record(path)
    with refused(path, "bottom.0.bias", "(1 tensors)"):
        load_weights(path)


def test_misshapen_and_unknown_tensors(saved, refused):
    path = saved[1]
    save_file(load_file(path) | {"bottom.0.bias": torch.zeros(47), "extra": torch.zeros(1)}, path)
    _renew_record(path)
    with refused(path, "bottom.0.bias", "extra", "(2 tensors)"):
        load_weights(path)


def test_weights_of_another_network(tmp_path, refused):
    path = tmp_path / "other.safetensors"
    save_weights({"encoder.0.0.0.weight": torch.zeros(5)}, path, RECORD)
    with refused(path, "not the network of its record"):
        load_weights(path)


def test_weights_of_a_network_with_shared_blocks_are_not_loaded_into_one_without(tmp_path, refused):
    path = tmp_path / "shared.safetensors"
    state = Architecture(shared_blocks=True).build(1).network.state_dict()
    save_weights(state, path, record_of(Architecture(shared_blocks=True), 1))
    assert load_weights(path).network.encoder[1] is not None
    save_weights(dict(list(state.items())[2:]), path, record_of(Architecture(shared_blocks=True), 1))
    with refused(path, "not the network of its record", "(2 tensors)"):
        load_weights(path)


@pytest.mark.parametrize(
    ("record", "part"),
    [
        ({}, "config"),
        ({"channels": 3, "config": {}}, "network"),
        ({"config": RECORD["config"]}, "channels"),
        ({"channels": 3, "config": {"network": {"name": "vit"}}}, "'vit'"),
        ({"channels": 3, "config": {"network": {"depth": 5}}}, "depth"),
        ({"channels": 3, "config": {"network": {"width": 2}}}, "width = 2"),
    ],
)
def test_a_record_that_names_no_network_is_refused(saved, refused, record, part):
    model, path = saved
    save_weights(model.network.state_dict(), path, record)
    with refused(path.with_suffix(".json"), "does not say which network", part):
        load_weights(path)


@pytest.mark.parametrize(("has", "wants"), [(3, 1), (1, 3)])
def test_wrong_channels(tmp_path, refused, has, wants):
    path = tmp_path / "w.safetensors"
    save_weights(Architecture().build(has).network.state_dict(), path, record_of(Architecture(), has))
    with refused(path, f"for {has} channel", f"have {wants}"):
        load_weights(path, channels=wants)


def _renew_record(path):
    """As if the altered file had been saved so."""
    path.with_suffix(".json").write_text(json.dumps(RECORD | {"sha256": sha256(path)}))


class _Mean(torch.nn.Module):
    """Another network: a mean over 3x3 pixels, its strength learned."""

    stride, reach = 1, 1

    def __init__(self, channels, **_):
        super().__init__()
        self.channels, self.strength = channels, torch.nn.Parameter(torch.tensor(0.75))

    def forward(self, t):
        return self.strength * torch.nn.functional.avg_pool2d(t, 3, 1, 1)


def test_a_network_registered_later_is_loaded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "mean", _Mean)
    path = tmp_path / "mean.safetensors"
    save_weights({"strength": torch.tensor(0.5)}, path, record_of(Architecture(name="mean"), 1))
    loaded = load_weights(path)
    assert isinstance(loaded.network, _Mean) and loaded.network.strength == 0.5 and (loaded.stride, loaded.reach) == (1, 1)


def test_missing_record(saved, refused):
    path = saved[1]
    path.with_suffix(".json").unlink()
    for load in (load_record, load_weights):
        with refused(path.with_suffix(".json"), "missing"):
            load(path)


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
        save_weights(ARCHITECTURE.build(3).network.state_dict(), path, {"steps": 8})
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == before
