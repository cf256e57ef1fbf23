"""Train and measure the runs of a study: python -m n2s_utils.studies FILE [RUN ...] [--out FOLDER]

FILE is a TOML file such as data/results/studies/closing_the_gap.toml:

    [common]       fields of training.Config that all runs share
    [measure]      dataset, images (the first so many of it), held_out (pictures for SURE), s_a and draws of the recorruptions;
                   `also`, other sets and how many images of each; `sigma`, where it is not that of the training noise
    [runs.NAME]    fields of this run; `extra` lists evaluations beside the plain one: recorrupted, x8, or earlier:
                   `draws` evaluations of the whole sets as the earlier reproduction made them

A study of faults, such as data/results/studies/why_23_db.toml, has two sections more:

    [faults]       NAME = the fields that bring it about
    [bases]        NAME = the faults of a configuration to start from; a run names its `base`, and what to
                   `toggle`: a fault that the base has is mended, one that it lacks introduced

Beside it, or in --out, it writes STUDY.csv, one row per run, and STUDY-curves.csv, their metrics.
A run that has a row of the same settings is not repeated; an interrupted one resumes.
"""

import argparse
import dataclasses
import hashlib
import json
import tomllib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from n2s_utils import cli, objectives
from n2s_utils.cli import InputError
from n2s_utils.datasets import load
from n2s_utils.evaluation import denoise, denoise_recorrupted, denoise_x8, evaluate, evaluate_as_earlier, write_table
from n2s_utils.files import ROOT
from n2s_utils.noise import Gaussian, realization, rng
from n2s_utils.training import Config, train
from n2s_utils.unet import STRIDE, UNet
from n2s_utils.weights import load_record, load_weights

EXTRA = ("recorrupted", "x8", "earlier")


@dataclass(frozen=True)
class Run:
    """One run of a study: its training, the evaluations beside the plain one, how all are measured, and what to
    note in its row (the base, the fault and its direction, in a study of faults).
    """

    config: Config
    extra: tuple[str, ...]
    measure: dict
    notes: dict

    @property
    def settings(self) -> str:
        """A digest of all that determines the row; fields at their default do not count, so that new ones may come."""
        values = dataclasses.asdict(self.config)
        fields = {field.name: values[field.name] for field in dataclasses.fields(Config) if values[field.name] != field.default}
        text = json.dumps([fields, self.extra, self.measure], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_study(path: str | Path) -> dict[str, Run]:
    """Name -> run of a study file; raises InputError naming a bad field or evaluation."""
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: no readable study file ({error.strerror})") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not TOML ({error})") from None
    for section in ("common", "measure", "runs"):
        if section not in content:
            raise InputError(f"{path}: section [{section}] is missing")
    runs = {}
    for name, fields in content["runs"].items():
        extra = tuple(fields.pop("extra", ()))
        for kind in extra:
            if kind not in EXTRA:
                raise InputError(f"{path}, run {name}: unknown evaluation {kind!r}; known: {', '.join(EXTRA)}")
        try:
            changes, notes = _faults(content, fields)
            config = Config(name=name, **(content["common"] | changes | fields))
        except (TypeError, InputError) as error:
            raise InputError(f"{path}, run {name}: {error}") from None
        runs[name] = Run(config, extra, content["measure"], notes)
    return runs


def _faults(content: dict, fields: dict) -> tuple[dict, dict]:
    """The fields that the faults of a run bring about, and its notes; takes `base` and `toggle` out of `fields`."""
    if "faults" not in content:
        return {}, {}
    base, toggle = fields.pop("base", ""), fields.pop("toggle", "")
    if base not in content["bases"]:
        raise InputError(f"unknown base {base!r}; known: {', '.join(content['bases'])}")
    present = set(content["bases"][base])
    for fault in (*present, *([toggle] if toggle else [])):
        if fault not in content["faults"]:
            raise InputError(f"unknown fault {fault!r}; known: {', '.join(content['faults'])}")
    direction = "" if not toggle else "mended" if toggle in present else "introduced"
    present ^= {toggle} - {""}
    changes = {}
    for fault, change in content["faults"].items():  # in the order of the file: a later fault overrules
        changes |= change if fault in present else {}
    return changes, {"base": base, "fault": toggle, "direction": direction}


def read_rows(path: str | Path, folder: str | Path | None = None) -> pd.DataFrame:
    """The rows of a study file's runs, in its order, by run name; raises InputError naming those that are missing or outdated."""
    path, runs = Path(path), read_study(path)
    table = _recorded(Path(folder or path.parent) / f"{path.stem}.csv")
    missing = [name for name, run in runs.items() if name not in table.index or table.settings[name] != run.settings]
    if missing:
        raise InputError(f"{path.stem}: no row of {', '.join(missing)}; run python -m n2s_utils.studies {path}")
    return table.loc[list(runs)]


def run_study(path: str | Path, only: list[str] | None = None, folder: str | Path | None = None) -> None:
    """Train and measure the runs of a study file that have no row yet, or `only` some; see the module's text."""
    path, runs = Path(path), read_study(path)
    folder = Path(folder or path.parent)
    for name in only or ():
        if name not in runs:
            raise InputError(f"{path}: no run {name!r}; known: {', '.join(runs)}")
    for name in only or runs:
        rows = _recorded(folder / f"{path.stem}.csv")
        if name in rows.index and rows.settings[name] == runs[name].settings:
            continue
        weights = train(runs[name].config, ROOT / "build" / "runs" / path.stem)
        row = pd.DataFrame([_measured(runs[name], weights)], index=pd.Index([name], name="run"))
        rows = _recorded(folder / f"{path.stem}.csv")  # again: another process may have added to them meanwhile
        write_table(pd.concat([rows.drop(index=name, errors="ignore"), row]).reset_index(), folder / f"{path.stem}.csv")
        curve = pd.read_csv(weights.with_suffix(".csv")).assign(run=name).set_index("run")
        curves = _recorded(folder / f"{path.stem}-curves.csv")
        write_table(pd.concat([curves.drop(index=name, errors="ignore"), curve]).reset_index(), folder / f"{path.stem}-curves.csv")
        print(row.T.to_string(), flush=True)


def _recorded(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(index=pd.Index([], name="run"))
    return pd.read_csv(path, index_col="run", dtype={"settings": str})


def _measured(run: Run, weights: Path) -> dict:
    record, measure = load_record(weights), run.measure
    model, noise = load_weights(weights), Gaussian(measure.get("sigma", run.config.parameter))
    denoisers = {
        "plain": lambda y: denoise(model, y, noise),
        "recorrupted": lambda y: denoise_recorrupted(model, y, noise, measure["s_a"], measure["draws"], rng("recorruption")),
        "x8": lambda y: denoise_x8(model, y, noise),
    }
    row = {"settings": run.settings} | run.notes | {"objective": run.config.objective, "seed": run.config.seed}
    row |= {key: record[key] for key in ("crops", "steps", "minutes", "device", "held_out_loss")}
    row["estimated_psnr"] = round(_estimated_psnr(model, noise, run), 4)
    sets = {measure["dataset"]: measure["images"]} | measure.get("also", {})
    for kind in ("plain", *run.extra):
        for dataset, images in sets.items():
            count = None if kind == "earlier" else images
            pictures = [(name, _of_channels(x, model.channels)) for name, x in islice(load(dataset), count)]
            column = kind if dataset == measure["dataset"] else f"{kind}-{dataset}"
            if kind == "earlier":
                means = evaluate_as_earlier(dataset, pictures, noise, denoisers["plain"], measure["draws"])
                row |= {column: means.mean(), f"{column}-low": np.quantile(means, 0.025), f"{column}-high": np.quantile(means, 0.975)}
            else:
                row[column] = np.mean([r["psnr"] for r in evaluate(dataset, pictures, noise, kind, denoisers[kind], [0])])
    return {key: round(float(value), 4) if isinstance(value, np.floating) else value for key, value in row.items()}


def _of_channels(picture: np.ndarray, channels: int) -> np.ndarray:
    """A grey picture as the earlier reproduction gave it to a colour network: three equal planes."""
    return np.repeat(picture, channels, axis=2) if picture.shape[2] == 1 else picture


@torch.no_grad()
def _estimated_psnr(model: UNet, noise: Gaussian, run: Run) -> float:
    """By SURE, over whole held-out noisy pictures: comparable between crop sizes too."""
    config, errors = run.config, []
    for image, clean in islice(load(config.held_out), run.measure["held_out"]):
        y = realization(clean, noise, config.held_out, image, config.noise_seed)
        y = y[: y.shape[0] // STRIDE * STRIDE, : y.shape[1] // STRIDE * STRIDE]
        tensor = torch.from_numpy(np.ascontiguousarray(y.transpose(2, 0, 1)[None]))
        errors.append(objectives.sure(model, tensor, noise.std, torch.Generator().manual_seed(0)))
    return float(-10 * np.log10(np.mean(errors)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and measure the runs of a study.")
    parser.add_argument("study", help="TOML file")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="only these runs (default all)")
    parser.add_argument("--out", help="folder of the rows (default that of the study file)")
    options = parser.parse_args()
    run_study(options.study, options.runs, options.out)


if __name__ == "__main__":
    cli.run(main)
