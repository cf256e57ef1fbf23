"""The PSNR tables of notebook 05 and the README, from result rows and published figures."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from n2s_utils import noise
from n2s_utils.cli import InputError
from n2s_utils.evaluation import read_rows, write_table
from n2s_utils.files import ROOT
from n2s_utils.report.figures import to_markdown

DATASETS = ("CBSD68", "Kodak", "BSD68", "Set12")
OURS, AR_DAE, TWIN = "antithetic", "ar-dae", "supervised"  # methods, as result rows name them
PUBLISHED = OURS + "-published"  # the same score, read by the formula for counts as published
ROLES = {"gr2r": OURS, "gr2r-supervised": TWIN}  # of the networks for every noise, after their last stage: see `pick`
NAMES = {"noisy": "noisy", "nlm": "non-local means", OURS: "ours", AR_DAE: "AR-DAE", TWIN: "twin", PUBLISHED: "published formula"}
TABLE_2 = {"gaussian": (25.0, 50.0), "poisson": (0.01, 0.05), "gamma": (100.0, 50.0)}  # the paper's
SYMBOLS = {"gaussian": "σ", "poisson": "ζ", "gamma": "k"}


def read_results(folder: str | Path = ROOT / "data" / "results") -> pd.DataFrame:
    """The result rows of a folder's CSV files, of noise with one parameter (that of cameras is in notebook 09); raises InputError
    if there are none."""
    rows = read_rows(path for path in sorted(Path(folder).glob("*.csv")) if noise.PoissonGaussian.name not in path.name)
    if rows.empty:
        raise InputError(f"{folder}: no result rows; run 'make report PROFILE=paper'")
    return rows


def read_published() -> pd.DataFrame:
    """The published figures, each with its source."""
    return pd.read_csv(ROOT / "data" / "published.csv")


def kept(place: str, measure: Callable[[], Iterable[dict[str, Any]]], output: str) -> pd.DataFrame:
    """The table at OUTPUT/data/results/PLACE, its rows from `measure`, OUTPUT relative to the repository's root. Where results are
    recorded, that is in the repository itself, a table that stands there is read and not measured again.
    """
    path = ROOT / output / "data" / "results" / place
    if output != "." or not path.exists():
        write_table(pd.DataFrame(measure()), path)
    return pd.read_csv(path, dtype={"image": str})


def network_of(rows: pd.DataFrame) -> pd.Series:
    """Of each row: "dedicated" where its weights file is named after the row's noise (colour-gaussian25-...), "general" where
    it is one for every noise, "score matching" where that is the one before its last stage (GR2R), "" where there is none.
    """

    def kind(weights: str, noise: str, parameter: float | str) -> str:
        label = f"{noise}{parameter}" if isinstance(parameter, str) else f"{noise}{parameter:g}"
        if not weights:
            return ""
        if f"-{label}-" in weights:
            return "dedicated"
        return "general" if "-gr2r" in weights else "score matching"

    kinds = [kind(*row) for row in rows[["weights", "noise", "parameter"]].itertuples(index=False)]
    return pd.Series(kinds, rows.index, dtype=str)


def pick(rows: pd.DataFrame, known: int = 1, network: str = "dedicated") -> pd.DataFrame:
    """The rows of a table: with the parameter known or estimated, from one kind of network (`network_of`); those without a
    network are in every table. Ours and the twin are the methods OURS and TWIN in every kind, whatever their last stage was (ROLES).

    Raises InputError naming the files where two networks of that kind would be averaged.
    """
    kinds = network_of(rows)
    chosen = rows[(rows.known == known) & kinds.isin(["", network])].replace({"method": ROLES})
    files = chosen.groupby(["dataset", "method", "noise", "parameter"]).weights.unique()
    for (dataset, method, *_), names in files.items():
        if len(names) > 1:
            raise InputError(f"data/results: {method} on {dataset} has rows of {' and '.join(sorted(names))}; keep those of one file")
    return chosen


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean PSNR and its 95 % interval over the images of each data set, method and noise, of rows that `pick` gave.

    The noise seeds of an image are averaged first: they are no independent images. The interval is
    mean +- t s / sqrt(n), column `interval` its half width.
    """
    keys = ["dataset", "method", "noise", "parameter"]
    images = rows.groupby([*keys, "image"], as_index=False).psnr.mean()
    summary = images.groupby(keys, as_index=False).psnr.agg(["mean", "count", interval])
    return summary.rename(columns={"count": "images"})


def interval(values: pd.Series) -> float:
    """Half the width of the 95 % interval of their mean (Student's t)."""
    return stats.t.ppf(0.975, len(values) - 1) * values.std() / np.sqrt(len(values))


def paired(rows: pd.DataFrame) -> pd.DataFrame:
    """Ours less its twin over the pictures of each noise, parameter and data set, of rows that `pick` gave: the mean difference
    in dB and half its 95 % interval.
    """
    keys = ["noise", "parameter", "dataset"]
    images = rows.pivot_table(index=[*keys, "image"], columns="method", values="psnr", sort=False)
    difference = (images[OURS] - images[TWIN]).dropna().groupby(keys, sort=False)
    return pd.DataFrame({"to the twin": difference.mean(), "95 % interval, ±": difference.agg(interval)})


def psnr_table(
    results: pd.DataFrame,
    published: pd.DataFrame,
    model: noise.Model = noise.Gaussian(25.0),  # noqa: B008 frozen
    network: str = "dedicated",
    sets: Sequence[str] = DATASETS,
) -> pd.DataFrame:
    """One noise: a row per benchmark set, ours beside the baselines and the published figures, in dB.

    `network` is that of `pick`. "over pictures" is half the 95 % interval of our mean, "paired" that of the difference to the twin.
    Columns that would be empty are left out, and so are published figures marked as misprints.
    """

    def of(rows: pd.DataFrame) -> pd.DataFrame:
        return rows[(rows.noise == model.name) & (rows.parameter == model.parameter)]

    def summary_of(known: int, network: str) -> pd.DataFrame:
        return summarise(pick(of(results), known, network)).set_index(["dataset", "method"])

    summary, unknown = summary_of(1, network), summary_of(0, network)["mean"]
    figures = claims(published).reset_index()
    claimed = [of(figures[figures.known == known]).set_index(["dataset", "method"]).psnr for known in (1, 0)]
    both = pick(of(results), 1, network)
    intervals = paired(both).droplevel(["noise", "parameter"])["95 % interval, ±"] if TWIN in set(both.method) else pd.Series(dtype=float)
    rows = [_table_row(dataset, model, summary, claimed, intervals, unknown) for dataset in sets]
    return pd.DataFrame(rows).set_index("set").dropna(axis=1, how="all")


def claims(published: pd.DataFrame) -> pd.Series:
    """The published PSNR without misprints, by noise, parameter, dataset, known and method."""
    figures = published[~published.note.astype(str).str.startswith("misprint")]
    keys = ["noise", "parameter", "dataset", "known", "method"]
    return figures.drop_duplicates(keys).set_index(keys).psnr


def _table_row(
    dataset: str, model: noise.Model, summary: pd.DataFrame, claimed: list[pd.Series], intervals: pd.Series, unknown: pd.Series
) -> dict[str, Any]:
    for method in ("noisy", "nlm", OURS):
        if (dataset, method) not in summary.index:
            raise InputError(f"data/results: no rows of {method} on {dataset} with {model}; run 'make report PROFILE=paper'")
    claim, claim_unknown = claimed
    ours, paper = summary.loc[(dataset, OURS)], claim.get((dataset, "noise2score"), np.nan)
    twin = summary["mean"].get((dataset, TWIN), np.nan)
    return {
        "set": dataset,
        "noisy": summary["mean"][dataset, "noisy"],
        "non-local means": summary["mean"][dataset, "nlm"],
        "AR-DAE": summary["mean"].get((dataset, AR_DAE), np.nan),  # trained in colour only
        "published formula": summary["mean"].get((dataset, PUBLISHED), np.nan),
        "paper": paper,
        "ours": ours["mean"],
        "to the paper": ours["mean"] - paper,
        "over pictures": ours["interval"],
        "twin": twin,
        "to the twin": ours["mean"] - twin,
        "paired": intervals.get(dataset, np.nan),
        "paper's supervised": claim.get((dataset, "supervised"), np.nan),
        "earlier reproduction": claim.get((dataset, "earlier-reproduction"), np.nan),
        "estimated": unknown.get((dataset, OURS), np.nan),
        "paper, unknown": claim_unknown.get((dataset, "noise2score"), np.nan) if (dataset, OURS) in unknown else np.nan,
    }


def model_table(results: pd.DataFrame, published: pd.DataFrame, name: str) -> pd.DataFrame:
    """One model of noise: `psnr_table` of its two parameters in the paper's Table 2, of the one network for every noise.

    "score matching" is that network before its last stage, "published formula" another reading of its score. Where there are
    networks for one noise alone too, their figures are the columns "one noise", "one noise, twin" and "AR-DAE".
    """
    parts = {}
    for value in TABLE_2[name]:
        model = noise.make(name, value)
        table, before = (psnr_table(results, published, model, kind) for kind in ("general", "score matching"))
        table = table.assign(**{"score matching": before.ours, "published formula": before.get("published formula", np.nan)})
        of_it = results[(results.noise == name) & (results.parameter == value)]
        dedicated = set(of_it.dataset[network_of(of_it) == "dedicated"])
        if sets := [dataset for dataset in DATASETS if dataset in dedicated]:
            own = psnr_table(results, published, model, sets=sets)
            table = table.assign(**{"one noise": own.ours, "one noise, twin": own.twin, "AR-DAE": own.get("AR-DAE", np.nan)})
        parts[value] = table.rename(lambda dataset, value=value: f"{dataset}, {value:g}")
    return pd.concat(parts.values()).rename_axis(f"set, {SYMBOLS[name]}")


def main_table(results: pd.DataFrame, published: pd.DataFrame, name: str) -> pd.DataFrame:
    """What the README shows of `model_table`: paper, ours and its distance to the paper, the twin and the paired distance to it, the
    network for that noise alone where there is one, and ours with the parameter estimated beside the paper's.
    """

    def with_brackets(texts: list[str], values: pd.Series, form: str) -> list[str]:
        return [f"{text} ({value:{form}})" if pd.notna(value) else text for text, value in zip(texts, values, strict=True)]

    table = model_table(results, published, name)
    table["to the twin"] = [f"{difference:+.2f} ± {half:.2f}" for difference, half in zip(table["to the twin"], table.paired, strict=True)]
    table["ours (to the paper)"] = with_brackets([f"**{value:.2f}**" for value in table.ours], table["to the paper"], "+.2f")
    table["unknown (paper)"] = with_brackets([f"{value:.2f}" for value in table.estimated], table["paper, unknown"], ".2f")
    table = table.rename(columns={"one noise": "one σ alone"})
    columns = ["paper", "ours (to the paper)", "twin", "to the twin", "one σ alone", "unknown (paper)"]
    return table[[column for column in columns if column in table]]


def main_tables(results: pd.DataFrame, published: pd.DataFrame) -> str:
    """`main_table` of every model, as Markdown."""
    parts = [f"**{name.capitalize()} noise**\n\n{to_markdown(main_table(results, published, name))}" for name in TABLE_2]
    return "\n\n".join(parts)
