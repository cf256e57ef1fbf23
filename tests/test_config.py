"""Configurations: tables of a file, stages, changes, and what makes two runs the same."""

import dataclasses
import tomllib

import pytest
import torch
from conftest import GAMMA, PAIR, POISSON, POISSON_GAUSSIAN, TINY, tiny

from n2s_utils import config, noise
from n2s_utils.config import differences, merged, parse_change, read_stages
from n2s_utils.network import Architecture
from n2s_utils.optimisation import Optimisation

FILE = """
name = "run"

[data]
dataset = "tiny"
held_out = "tiny-held-out"
held_out_pixels = 4096

[noise]
model = "gaussian"
sigma = 25

[objective]
name = "antithetic"
s_max = 0.5
s_min = 0.1

[optimisation]
crop = 32
batch = 1
crops = 6
warmup = 2

[machine]
precision = "fp32"
every = 2
"""
STAGES = """
[[stages]]
optimisation = { crops = 9 }

[[stages]]
optimisation = { crop = 64, minutes = 2 }
network = { kink = "leaky" }

[[stages]]
objective = { s_min = 0.2 }
"""


@pytest.fixture
def toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def staged(toml):
    toml.write_text(FILE + STAGES)
    return toml


def test_configuration_file(toml):
    assert read_stages(toml) == [tiny()]
    changes = {"optimisation": {"batch": 3}, "noise": {"sigma": 50}}
    assert read_stages(toml, changes) == [tiny(batch=3, noise={"model": "gaussian", "sigma": 50.0})]


def test_a_length_given_later_replaces_the_file_s(toml):
    assert read_stages(toml, {"optimisation": {"minutes": 5}}) == [tiny(crops=0, minutes=5.0)]
    assert read_stages(toml, {"optimisation": {"crops": 9}}) == [tiny(crops=9)]


@pytest.mark.parametrize("model", [TINY["noise"], POISSON, GAMMA, POISSON_GAUSSIAN], ids=lambda table: table["model"])
def test_tables_of_a_configuration_give_it_again(model):
    run = tiny(noise=model, start="first")
    assert config.from_tables(run.tables()) == run
    assert run.tables()["noise"] == {"model": model["model"]} | {key: float(value) for key, value in model.items() if key != "model"}
    assert run.noise == noise.from_table(model)


def test_numbers_without_a_point_serve_as_floats():
    run = tiny(clip=100, noise={"model": "gaussian", "sigma": 50})
    assert type(run.optimisation.clip) is float and type(run.noise.sigma) is float
    assert run == tiny(clip=100.0, noise={"model": "gaussian", "sigma": 50.0})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name = 'a'\nsigmas = 3", ("unknown table or field 'sigmas'", "optimisation")),
        ("name = 'a'\n[objective]\nsigma_max = 3", ("[objective]: unknown field 'sigma_max'", "s_max")),
        ("name = 'a'\n[noise]\nmodel = 'gaussian'\nsigma = 25", ("[objective]: field 'name' is missing",)),
        ("[objective]\nname = 'antithetic'", ("field 'name' is missing",)),
        ("name = 'a'\nobjective = 'antithetic'", ("objective = 'antithetic'", "[objective]")),
        ("name = 'a'\n[objective]\nname = 'ar-dae'\n[optimisation]\ncrops = 3", ("noise ''", "gaussian")),
        ("name = ", ("not TOML",)),
        ("\x00\x01", ("not TOML",)),
        (FILE + "[[stages]]\noptimisation = { crop = -1 }", ("crop = -1",)),
        (FILE + "[stages]\noptimisation = { crop = 64 }", ("[[stages]]",)),
        ("stages = []\n" + FILE, ("[[stages]]",)),
        (FILE.replace("sigma = 25", "sigma = [5, 60]"), ("sigma = [5.0, 60.0]", "one number")),
        (FILE.replace("sigma = 25", "sigma = [[5, 6], 60]"), ("[noise] sigma = [5, 6]", "float")),
        (FILE + "[[stages]]\noptimisation = { clip = [1, 2] }", ("clip = [1, 2]", "float")),
    ],
)
def test_bad_configuration_file_is_refused(tmp_path, refused, text, parts):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with refused(path, *parts):
        read_stages(path)


def test_missing_configuration_file_is_refused(tmp_path, refused):
    with refused(tmp_path / "none.toml", "no readable configuration file"):
        read_stages(tmp_path / "none.toml")
    with refused(tmp_path, "no readable configuration file"):
        read_stages(tmp_path)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"batch": 0}, ("batch = 0",)),
        ({"crop": 0}, ("crop = 0",)),
        ({"every": -1}, ("every = -1",)),
        ({"warmup": 0}, ("warmup = 0",)),
        ({"learning_rate": 0.0}, ("learning_rate = 0.0",)),
        ({"learning_rate": float("nan")}, ("learning_rate = nan",)),
        ({"clip": float("inf")}, ("clip = inf",)),
        ({"ema": 1.0}, ("ema = 1.0",)),
        ({"ema": -0.1}, ("ema = -0.1",)),
        ({"crops": 0}, ("crops = 0", "minutes = 0.0", "one of them")),
        ({"optimisation": {"crops": 6, "minutes": 2.0}}, ("crops = 6", "minutes = 2.0", "one of them")),
        ({"crops": -8}, ("crops = -8",)),
        ({"optimisation": {"crops": 8, "minutes": -1.0}}, ("minutes = -1.0",)),
        ({"minutes": float("inf")}, ("minutes = inf",)),
        ({"optimisation": {"crops": 6, "minutes": float("nan")}}, ("minutes = nan",)),
        ({"seed": -1}, ("seed = -1",)),
        ({"name": ""}, ("name = ''",)),
        ({"name": "../x"}, ("name = '../x'", "without folders")),
        ({"schedule": "linear"}, ("schedule = 'linear'", "cosine, step")),
        ({"precision": "fp8"}, ("precision = 'fp8'", "bf16, fp32")),
        ({"device": "tpu"}, ("device = 'tpu'", "cpu, cuda")),
        ({"crops": 6.5}, ("[optimisation] crops = 6.5", "type int")),
        ({"second_seed": -1}, ("second_seed = -1",)),
        ({"noise_seed": -1}, ("noise_seed = -1",)),
        ({"held_out_pixels": 0}, ("held_out_pixels = 0",)),
        ({"batch": "8"}, ("batch = '8'", "type int")),
        ({"batch": True}, ("batch = True", "type int")),
        ({"noise": {"model": "gaussian", "sigma": "25"}}, ("[noise] sigma = '25'", "type float")),
        ({"noise": {"model": "gaussian", "sigma": True}}, ("[noise] sigma = True", "type float")),
        ({"noise": {"model": 3}}, ("[noise] model = 3", "type str")),
        ({"compile": 1}, ("compile = 1", "type bool")),
        ({"keep_every": 0}, ("keep_every = 0",)),
        ({"dataset": 3}, ("dataset = 3", "type str")),
        ({"name": 3}, ("name",)),
        ({"start": 3}, ("start = 3", "type str")),
        ({"noise": {"model": "gaussian", "sigma": 0.0}}, ("sigma = 0",)),
        ({"noise": {"model": "gaussian", "sigma": float("nan")}}, ("sigma = nan",)),
        ({"noise": {"model": "salt", "sigma": 25}}, ("'salt'", "gaussian")),
        ({"noise": {"model": "poisson", "sigma": 25}}, ("'poisson'", "zeta")),
    ],
)
def test_bad_configuration_is_refused(refused, changes, parts):
    with refused(*parts):
        tiny(**changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_device_is_refused(refused):
    with refused("device = 'cuda'", "no usable CUDA device", "cpu"):
        tiny(device="cuda")


# Stages.


def test_stages_are_chained_runs_each_with_its_own_changes(staged):
    first, second, last = read_stages(staged)
    assert [stage.name for stage in (first, second, last)] == ["run-1", "run-2", "run"]
    assert [stage.start for stage in (first, second, last)] == ["", "run-1", "run-2"]
    assert [(stage.optimisation.crops, stage.optimisation.minutes) for stage in (first, second, last)] == [(9, 0), (0, 2), (6, 0)]
    assert [stage.optimisation.crop for stage in (first, second, last)] == [32, 64, 32]
    assert [stage.network.kink for stage in (first, second, last)] == [Architecture().kink, "leaky", Architecture().kink]
    assert [(stage.objective.s_max, stage.objective.s_min) for stage in (first, second, last)] == [(0.5, 0.1), (0.5, 0.1), (0.5, 0.2)]
    assert {stage.noise for stage in (first, second, last)} == {noise.Gaussian(25.0)}


def test_the_first_stage_starts_where_the_file_says(staged):
    staged.write_text('start = "data/weights/x.safetensors"\n' + FILE + STAGES)
    assert [stage.start for stage in read_stages(staged)] == ["data/weights/x.safetensors", "run-1", "run-2"]


def test_changes_reach_every_stage_and_a_length_replaces_either_unit(staged):
    changes = {"name": "other", "optimisation": {"crops": 3, "seed": 7}, "machine": {"every": 1}}
    stages = read_stages(staged, changes)
    assert [stage.name for stage in stages] == ["other-1", "other-2", "other"] and stages[1].start == "other-1"
    for stage in stages:
        settings = stage.optimisation
        assert (settings.crops, settings.minutes, settings.seed, stage.machine.every) == (3, 0, 7, 1)
    for stage in read_stages(staged, {"optimisation": {"minutes": 0.5}}):
        assert (stage.optimisation.crops, stage.optimisation.minutes) == (0, 0.5)


# Changes on the command line.


@pytest.mark.parametrize(
    ("text", "tables"),
    [
        ("optimisation.batch=3", {"optimisation": {"batch": 3}}),
        ("batch=3", {"optimisation": {"batch": 3}}),
        ("learning_rate=1e-4", {"optimisation": {"learning_rate": 1e-4}}),
        ("device=cuda", {"machine": {"device": "cuda"}}),
        ("dataset='tiny'", {"data": {"dataset": "tiny"}}),
        ("noise.sigma=50", {"noise": {"sigma": 50}}),
        ("objective.name=ar-dae", {"objective": {"name": "ar-dae"}}),
        ("network.name=unet", {"network": {"name": "unet"}}),
        ("name=short", {"name": "short"}),
        ("start=a/b=c", {"start": "a/b=c"}),
        ("compile=true", {"machine": {"compile": True}}),
    ],
)
def test_a_change_names_its_table_or_only_the_field(text, tables):
    assert parse_change(text) == tables


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("crops", ("'crops'", "TABLE.KEY=VALUE")),
        ("colour=blue", ("unknown field 'colour'", "TABLE.KEY=VALUE")),
        ("sigma=50", ("unknown field 'sigma'", "noise")),  # of the table of the noise, which depends on the model
        ("=3", ("unknown field ''",)),
    ],
)
def test_a_change_that_names_no_one_field_is_refused(refused, text, parts):
    with refused(*parts):
        parse_change(text)


def test_a_field_of_two_tables_needs_its_table(refused, monkeypatch):
    twice = dataclasses.make_dataclass("Twice", [("batch", int, 1)])
    monkeypatch.setitem(config.TABLES, "twice", twice)
    with refused("'batch'", "TABLE.KEY=VALUE"):
        parse_change("batch=3")


@pytest.mark.parametrize("text", ["paint.colour=blue", "optimisation.colour=blue"])
def test_a_change_to_an_unknown_place_is_refused_with_the_file(toml, refused, text):
    with refused(toml, "unknown"):
        read_stages(toml, parse_change(text))


def test_merging_leaves_both_sides_as_they_were():
    tables, changes = {"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 4}, "c": {"z": 5}}
    assert merged(tables, changes) == {"a": {"x": 1, "y": 4}, "b": 3, "c": {"z": 5}}
    assert tables == {"a": {"x": 1, "y": 2}, "b": 3} and changes == {"a": {"y": 4}, "c": {"z": 5}}
    assert merged({"a": {"crops": 3, "seed": 1}}, {"a": {"minutes": 1}}) == {"a": {"minutes": 1, "seed": 1}}


# What is the same run.


def test_a_run_is_the_same_as_itself_on_any_machine_and_from_any_place_of_its_start():
    assert differences(tiny().tables(), tiny()) == []
    assert differences(tiny().tables(), tiny(every=1, precision="bf16", compile=True)) == []
    assert differences(tiny(start="here").tables(), tiny(start="there")) == []
    on_a_gpu = tiny().tables()
    on_a_gpu["machine"]["device"] = "cuda"  # which a machine without one would refuse
    assert differences(on_a_gpu, tiny()) == []


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"seed": 1}, ["optimisation.seed"]),
        ({"objective": {"name": "ar-dae", "s_max": 0.4}}, ["objective.name", "objective.s_max"]),
        ({"noise": {"model": "gaussian", "sigma": 50}}, ["noise.sigma"]),
        ({"noise": POISSON}, ["noise.model", "noise.sigma", "noise.zeta"]),
        ({"kink": "leaky", "noise_seed": 1}, ["data.noise_seed", "network.kink"]),
        ({"name": "other"}, ["name"]),
    ],
)
def test_a_changed_field_is_named(changes, names):
    assert differences(tiny().tables(), tiny(**changes)) == names


def test_a_field_that_an_earlier_run_did_not_know_had_its_default():
    saved = tiny().tables()
    del saved["network"], saved["optimisation"]["clip"], saved["data"]["fresh_noise"]
    assert differences(saved, tiny()) == []
    assert differences(saved, tiny(clip=7.0)) == ["optimisation.clip"]
    assert differences(saved, tiny(kink="leaky")) == ["network.kink"]


def test_an_earlier_run_with_a_field_unknown_today_is_another():
    [reason] = differences(tiny().tables() | {"colour": 3}, tiny())
    assert "'colour'" in reason


def test_the_file_of_these_tests_is_the_tables_of_these_tests():
    assert config.from_tables(tomllib.loads(FILE)) == tiny() and tiny(objective=PAIR).objective.name == "noise2noise"
    assert tiny().optimisation == Optimisation(crop=32, batch=1, crops=6, warmup=2)
