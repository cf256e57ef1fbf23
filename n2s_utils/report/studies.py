"""Train and measure the runs of a study: python -m n2s_utils.report.studies FILE [RUN ...] [--out FOLDER]

FILE is a TOML file such as data/results/studies/closing_the_gap.toml:

    [common]       tables of a training configuration (see n2s_utils.config) that all runs share
    [measure]      dataset, images (the first so many of it), held_out (pictures for SURE), s_a and draws of the recorruptions;
                   `also`, other sets and how many images of each; `noises`, MODEL = [parameters] to measure on, where they
                   are not that of the training: columns end in their labels
    [runs.NAME]    tables of this run; `extra` lists evaluations beside that in one pass (`psnr`): recorrupted, x8, or earlier:
                   `draws` evaluations of the whole sets as the earlier reproduction made them; `variant`, a key of
                   variants.VARIANTS; `measure`, what is different there

A study of faults, such as data/results/studies/why_23_db.toml, has two sections more:

    [faults]       NAME = the tables that bring it about; `pictures`, fields of faults.Faults, is one more of them
    [bases]        NAME = the faults of a configuration to start from; a run names its `base`, and what to
                   `toggle`: a fault that the base has is mended, one that it lacks introduced

Beside it, or in --out, it writes STUDY.csv, one row per run, and STUDY-curves.csv, their metrics.
A run that has a row of the same settings is not repeated; an interrupted one resumes.
"""

import argparse
import json
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from n2s_utils import cli, config, noise, objectives
from n2s_utils.cli import InputError
from n2s_utils.config import Config
from n2s_utils.datasets import load
from n2s_utils.denoiser import Denoiser, recorrupted, x8
from n2s_utils.evaluation import Denoise, evaluate, write_table
from n2s_utils.files import ROOT
from n2s_utils.mixture import Mixture, Source
from n2s_utils.noise import Gamma, Poisson, realization, rng
from n2s_utils.report import two_steps  # noqa: F401 one of the networks
from n2s_utils.report.faults import Faults, FaultyFeed, evaluate_as_earlier
from n2s_utils.report.variants import varied, varied_model
from n2s_utils.training import train
from n2s_utils.weights import load_record, load_weights

EXTRA = ("recorrupted", "x8", "earlier")


@dataclass(frozen=True)
class Run:
    """One run of a study: its training, the faults of its pictures, the evaluations beside that in one pass, how all are
    measured, and what to note in its row (the base, the fault and its direction, in a study of faults).
    """

    config: Config
    faults: Faults
    extra: tuple[str, ...]
    measure: dict[str, Any]
    notes: dict[str, str]
    variant: str

    @property
    def settings(self) -> str:
        """All that determines the row, as JSON."""
        tables = {name: table for name, table in self.config.tables().items() if name != "machine"}
        rest = {"faults": asdict(self.faults), "extra": self.extra, "measure": self.measure, "variant": self.variant}
        return json.dumps({"config": tables} | rest)

    def made(self, settings: str) -> bool:
        """Whether a row with these settings is one of this run; a field that they do not have had its default."""
        theirs, mine = json.loads(settings), json.loads(self.settings)
        same = all(theirs[part] == mine[part] for part in ("extra", "measure"))
        same = same and theirs["config"].get("start", "") == self.config.start and theirs.get("variant", "") == self.variant
        return same and Faults(**theirs["faults"]) == self.faults and not config.differences(theirs["config"], self.config)


def read_study(path: str | Path) -> dict[str, Run]:
    """Name -> run of a study file; raises InputError naming a bad field or evaluation."""
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: no readable study file ({error.strerror})") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not TOML ({error})") from None
    for section in ("common", "measure", "runs"):
        if section not in content:
            raise InputError(f"{path}: section [{section}] is missing")
    return {name: _read_run(path, content, name, dict(fields)) for name, fields in content["runs"].items()}


def _read_run(path: Path, content: dict[str, Any], name: str, fields: dict[str, Any]) -> Run:
    extra = tuple(fields.pop("extra", ()))
    for kind in extra:
        if kind not in EXTRA:
            raise InputError(f"{path}, run {name}: unknown evaluation {kind!r}; known: {', '.join(EXTRA)}")
    variant, measure = fields.pop("variant", ""), content["measure"] | fields.pop("measure", {})
    try:
        changes, notes = _faults(content, fields)
        tables = config.merged(config.merged({"name": name} | content["common"], changes), fields)
        faults = Faults(**tables.pop("pictures", {}))
        run = Run(config.from_tables(tables), faults, extra, measure, notes, variant)
        varied(run.config.noise, variant)
        return run
    except (TypeError, InputError) as error:
        raise InputError(f"{path}, run {name}: {error}") from None


def _faults(content: dict[str, Any], fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The tables that the faults of a run bring about, and its notes; takes `base` and `toggle` out of `fields`."""
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
    changes: dict[str, Any] = {}
    for fault, change in content["faults"].items():  # in the order of the file: a later fault overrules
        changes = config.merged(changes, change) if fault in present else changes
    return changes, {"base": base, "fault": toggle, "direction": direction}


def read_rows(path: str | Path, folder: str | Path | None = None) -> pd.DataFrame:
    """The rows of a study file's runs, in its order, by run name; raises InputError naming those that are missing or outdated."""
    path, runs = Path(path), read_study(path)
    table = _recorded(Path(folder or path.parent) / f"{path.stem}.csv")
    missing = [name for name, run in runs.items() if not _is_recorded(table, name, run)]
    if missing:
        raise InputError(f"{path.stem}: no row of {', '.join(missing)}; run python -m n2s_utils.report.studies {path}")
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
        if _is_recorded(rows, name, runs[name]):
            continue
        feed = partial(FaultyFeed, faults=runs[name].faults, variant=runs[name].variant)
        weights = train(runs[name].config, ROOT / "build" / "runs" / path.stem, feed)
        row = pd.DataFrame([_measured(runs[name], weights)], index=pd.Index([name], name="run"))
        rows = _recorded(folder / f"{path.stem}.csv")  # again: another process may have added to them meanwhile
        write_table(pd.concat([rows.drop(index=name, errors="ignore"), row]).reset_index(), folder / f"{path.stem}.csv")
        curve = pd.read_csv(weights.with_suffix(".csv")).assign(run=name).set_index("run")
        curves = _recorded(folder / f"{path.stem}-curves.csv")
        write_table(pd.concat([curves.drop(index=name, errors="ignore"), curve]).reset_index(), folder / f"{path.stem}-curves.csv")


def _is_recorded(rows: pd.DataFrame, name: str, run: Run) -> bool:
    return name in rows.index and run.made(rows.settings[name])


def _recorded(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(index=pd.Index([], name="run"))
    return pd.read_csv(path, index_col="run", dtype={"settings": str})


def _measured(run: Run, weights: Path) -> dict[str, Any]:
    record, measure = load_record(weights), run.measure
    row = {"settings": run.settings} | run.notes | {"objective": run.config.objective.name, "seed": run.config.optimisation.seed}
    row |= {key: record[key] for key in ("crops", "steps", "minutes", "device", "precision", "held_out_loss")}
    models: list[Source] = [noise.make(name, value) for name, values in measure.get("noises", {}).items() for value in values]
    for model in models or [run.config.noise]:
        assert not isinstance(model, Mixture), f"{run.config.name}: a mixture is measured on the noises of [measure]"
        columns = _on_noise(run, Denoiser(load_weights(weights), varied_model(model, run.variant)))
        row |= {column + f"-{model.label}" * bool(models): value for column, value in columns.items()}
    return {key: round(float(value), 4) if isinstance(value, np.floating) else value for key, value in row.items()}


def _on_noise(run: Run, single: Denoiser) -> dict[str, Any]:
    measure, model = run.measure, single.noise
    denoisers: dict[str, Denoise] = {
        "psnr": single,
        "recorrupted": lambda y: recorrupted(single, y, measure["s_a"], measure["draws"], rng("recorruption")),
        "x8": partial(x8, single),
    }
    row = _without_clean_pictures(single, run)
    sets = {measure["dataset"]: measure["images"]} | measure.get("also", {})
    for kind in ("psnr", *run.extra):
        for dataset, images in sets.items():
            count = None if kind == "earlier" else images
            pictures = [(name, _of_channels(x, single.network.channels)) for name, x in islice(load(dataset), count)]
            column = kind if dataset == measure["dataset"] else f"{kind}-{dataset}"
            if kind == "earlier":
                means = evaluate_as_earlier(dataset, pictures, model, single, measure["draws"])
                row |= {column: means.mean(), f"{column}-low": np.quantile(means, 0.025), f"{column}-high": np.quantile(means, 0.975)}
            else:
                row[column] = np.mean([r["psnr"] for r in evaluate(dataset, pictures, model, kind, denoisers[kind], [0])])
    return row


def _of_channels(picture: np.ndarray, channels: int) -> np.ndarray:
    """A grey picture as the earlier reproduction gave it to a colour network: three equal planes."""
    return np.repeat(picture, channels, axis=2) if picture.shape[2] == 1 else picture


@torch.no_grad()
def _without_clean_pictures(single: Denoiser, run: Run) -> dict[str, float]:
    """The PSNR to expect, from whole held-out noisy pictures alone, comparable between crop sizes too."""
    data, errors, stride = run.config.data, [], single.network.stride
    for image, clean in islice(load(data.held_out), run.measure["held_out"]):
        y = realization(clean, single.noise, data.held_out, image, data.noise_seed)
        errors.append(expected_error(single, y[: y.shape[0] // stride * stride, : y.shape[1] // stride * stride]))
    return {"estimated_psnr": -10 * np.log10(np.mean(errors))}


def expected_error(single: Denoiser, y: np.ndarray) -> float:
    """The mean squared error to expect of the posterior mean of the noisy y (H, W, C), without a clean picture: by SURE for
    Gaussian noise, and by `poisson_error` or `gamma_error`.
    """
    model = single.noise
    if isinstance(model, Poisson):
        return poisson_error(single, y, model)
    if isinstance(model, Gamma):
        return gamma_error(single, y, model)
    c = torch.from_numpy(np.ascontiguousarray(model.coordinate(y).transpose(2, 0, 1)[None]))
    return model.std**2 * objectives.sure(partial(single.network, noise=model), c, torch.Generator().manual_seed(0))


def poisson_error(denoise: Denoise, y: np.ndarray, model: Poisson) -> float:
    """The mean squared error of x = denoise(y), pictures (H, W, C) with the counts of `model`, without a clean picture, by Hudson's
    identity E[lambda f(c)] = E[c f(c - 1)] for counts c of mean lambda:

    E|x - y|^2 + E[2 y_i (x_i(y) - x_i(y - zeta e_i)) - zeta y_i], e_i one count at pixel i.

    With Gaussian noise of variance s^2 beside the counts, Stein's identity adds E[2 s^2 dx_i/dy_i(y - zeta e_i)] - s^2.
    """
    lower, variance = y - model.zeta, model.zeta**2 * model.read_variance
    error = _error_by_lowering(denoise, y, lower if variance else lower.clip(0)) - model.zeta * float(y.mean())
    if not variance:
        return error
    step = variance**0.5 / 5

    def slope(chosen: np.ndarray) -> np.ndarray:
        higher, lowest = (denoise(np.where(chosen, lower + sign * step, y).astype(np.float32)) for sign in (1, -1))
        return (higher - lowest) / (2 * step)

    return error + variance * (2 * _response(slope, y.shape) - 1)


def gamma_error(denoise: Denoise, y: np.ndarray, model: Gamma) -> float:
    """The same for Gamma noise of shape k, by E[x f(y)] = E[y f(b y)] with b ~ Beta(k, 1), as integration by parts gives it:

    E|x - y|^2 + E[2 y_i (x_i(y) - x_i(y with b y_i at pixel i)) - y_i^2 / (k + 1)].
    """
    lower = rng("beta").beta(model.k, 1, y.shape) * y
    return _error_by_lowering(denoise, y, lower) - float((y**2).mean()) / (model.k + 1)


def _error_by_lowering(denoise: Denoise, y: np.ndarray, lower: np.ndarray) -> float:
    """E|x - y|^2 + E[2 y_i (x_i(y) - x_i(y with lower_i at pixel i))]."""
    x = denoise(y)

    def change(chosen: np.ndarray) -> np.ndarray:
        return y * (x - denoise(np.where(chosen, lower, y).astype(np.float32)))

    return float(((x - y) ** 2).mean()) + 2 * _response(change, y.shape)


def _response(change: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> float:
    """The mean change of a pixel, by change(which pixels are altered together): four times another random 64th, as more would
    alter each other's surroundings too much. What the altered do to the others, their neighbours do to each: it is taken off.
    """
    part, means = rng("hudson").integers(64, size=shape), []
    for number in range(4):
        chosen = part == number
        changes = change(chosen)
        means.append(changes[chosen].mean() - changes[~chosen].mean())
    return float(np.mean(means))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and measure the runs of a study.")
    parser.add_argument("study", help="TOML file")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="only these runs (default all)")
    parser.add_argument("--out", help="folder of the rows (default that of the study file)")
    options = parser.parse_args()
    run_study(options.study, options.runs, options.out)


if __name__ == "__main__":
    cli.run(main)
