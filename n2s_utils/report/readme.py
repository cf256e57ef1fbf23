"""What the README takes from the rows, its tables and the numbers of its prose: python -m n2s_utils.report.readme

Rewrites the tables in README.md, and data/results/studies/headline.csv, where a test finds every number of the prose.
"""

from collections.abc import Iterator

import pandas as pd

from n2s_utils import cli
from n2s_utils.cli import InputError
from n2s_utils.evaluation import write_table
from n2s_utils.files import ROOT, atomic_write
from n2s_utils.report import tables

PLACE = ROOT / "data" / "results" / "studies" / "headline.csv"
STUDIES = PLACE.parent
WHY = "studies/why_23_db.csv"


def headline() -> pd.DataFrame:
    """Columns claim, value (two decimals) and rows, the table under data/results that it comes from."""
    results = tables.read_results()
    rows = [
        *_against_paper_and_twin(results),
        *_crossed(),
        *_skewness(),
        *_unknown(results),
        *_coordinates(),
        *_generality(),
        *_earlier(),
        *_beyond(),
    ]
    return pd.DataFrame(rows, columns=["claim", "value", "rows"]).dropna().round({"value": 2}).reset_index(drop=True)


def _against_paper_and_twin(results: pd.DataFrame) -> Iterator[tuple[str, float, str]]:
    published = tables.read_published()
    models = {name: tables.model_table(results, published, name) for name in tables.TABLE_2}
    for label, row in models["gaussian"].iterrows():
        place = f"{str(label).replace(', ', '-gaussian')}.csv"
        yield f"ours, {label}", row.ours, place
        yield f"ours to the paper, {label}", row["to the paper"], place
        yield f"ours to the twin, {label}", row["to the twin"], place
        yield f"paired interval, {label}", row.paired, place
        yield f"AR-DAE, {label}", row["AR-DAE"], place
        yield f"AR-DAE to the paper, {label}", row["AR-DAE"] - row.paper, place
        yield f"one σ alone, {label}", row["one noise"], place
        yield f"one σ alone to the paper, {label}", row["one noise"] - row.paper, place
    for name, table in models.items():
        rows = f"*-{name}*.csv"
        yield f"least distance to the paper, {name}", table["to the paper"].min(), rows
        yield f"largest distance to the paper, {name}", table["to the paper"].max(), rows
        yield f"largest distance to the twin, {name}", table["to the twin"].min(), rows
    every = pd.concat(models.values())
    yield "cells with a figure of the paper", every["to the paper"].count(), "*.csv"
    yield "cells at or above it", (every["to the paper"] >= 0).sum(), "*.csv"
    yield "least distance to the twin", every["to the twin"].max(), "*.csv"
    gain = every.ours - every["score matching"]
    yield "least gain of the last stage at zeta 0.05", gain.filter(like=", 0.05").min(), "*-poisson0.05.csv"
    yield "largest gain of the last stage", gain.max(), "*-poisson0.05.csv"
    yield "most that the last stage costs", gain.min(), "*.csv"
    ahead = every["to the twin"].sort_values()
    yield f"largest distance to the twin, {ahead.index[0]}", ahead.iloc[0], "*.csv"
    yield f"the next, {ahead.index[1]}", ahead.iloc[1], "*.csv"
    before = tables.paired(tables.pick(results[results.dataset.isin(tables.DATASETS)], network="score matching"))["to the twin"]
    yield "largest distance to the twin before the last stage", before.min(), "*-poisson0.05.csv"
    for label, row in every[every["to the paper"] < 0].iterrows():
        yield f"below the paper, {label}", row["to the paper"], "*.csv"
    unknown = (every["estimated"] - every["paper, unknown"]).dropna()
    yield "cells at or above the paper, parameter unknown", (unknown >= 0).sum(), "*-unknown.csv"
    for label, value in unknown[unknown < 0].items():
        yield f"below the paper, parameter unknown, {label}", value, "*-unknown.csv"


def _ours(results: pd.DataFrame, known: int) -> pd.Series:
    """Mean PSNR of the networks for every noise, noise seed 0, by noise, parameter and set."""
    rows = tables.pick(results[(results.seed == 0) & results.dataset.isin(tables.DATASETS)], known, "general")
    return rows[rows.method == tables.OURS].groupby(["noise", "parameter", "dataset"]).psnr.mean()


def _crossed() -> Iterator[tuple[str, float, str]]:
    gains = _gains("crossed", "colour-noisy-clean", "colour-noisy-noisy")
    yield "most that clean pictures in the last stage win", gains.max(), "studies/crossed.csv"


def _skewness() -> Iterator[tuple[str, float, str]]:
    gains = _gains("skewness", "colour-told", "colour-untold")
    few = gains.index.str.endswith("poisson0.01")
    for column, gain in gains[few].items():
        yield f"gain of knowing the skewness, {column}", gain, "studies/skewness.csv"
    yield "largest gain of it elsewhere", gains[~few].max(), "studies/skewness.csv"


def _unknown(results: pd.DataFrame) -> Iterator[tuple[str, float, str]]:
    yield "most that an unknown parameter costs", (_ours(results, known=1) - _ours(results, known=0)).max(), "*-unknown.csv"


def _coordinates() -> Iterator[tuple[str, float, str]]:
    for run, row in _study("gamma_loss").iterrows():
        yield f"Gamma noise, run {run}", row["psnr-gamma100"], "studies/gamma_loss.csv"


def _generality() -> Iterator[tuple[str, float, str]]:
    runs = _study("generality")
    alone = {"sigma-25": "gaussian25", "sigma-50": "gaussian50", "zeta-0_01": "poisson0.01", "k-100": "gamma100"}
    costs = [runs[f"psnr-{label}"][f"{run}-alone"] - runs[f"psnr-{label}"]["general"] for run, label in alone.items()]
    yield "least cost of serving every noise", min(costs), "studies/generality.csv"
    yield "largest cost of serving every noise", max(costs), "studies/generality.csv"


def _earlier() -> Iterator[tuple[str, float, str]]:
    runs = _study("why_23_db").psnr
    yield "the earlier configuration", runs["published-untuned"], WHY
    yield "the same without the ReLU", runs["published-untuned-without-relu-output"], WHY
    yield "50 pictures in place of 400", runs["ours-on-50"] - runs["ours-long"], WHY
    clamped = pd.read_csv(STUDIES / "clamped.csv").iloc[:16]  # the pictures on which the study measures its runs
    for column, what in (("two_sided_in_range", "as it is"), ("clamped_in_range", "clamped at zero")):
        yield f"our score, {what}", clamped[column].mean(), "studies/clamped.csv"


def _beyond() -> Iterator[tuple[str, float, str]]:
    rows = pd.read_csv(STUDIES / "averaging.csv")
    means = rows[rows.network == tables.OURS].groupby(["sigma", "way"]).psnr.mean()
    for sigma in (25.0, 50.0):
        yield f"mean over eight flips and turns, σ {sigma:g}", means[sigma, "x8"] - means[sigma, "one pass"], "studies/averaging.csv"
    whole = pd.read_csv(STUDIES / "flips_and_turns.csv").groupby(["noise", "dataset", "method"]).psnr.mean().unstack()
    gains = whole[f"{tables.OURS}-x8"] - whole[tables.OURS]
    yield "least gain of flips and turns on a grey set", gains.min(), "studies/flips_and_turns.csv"
    yield "largest gain of flips and turns on a grey set", gains.max(), "studies/flips_and_turns.csv"


def _study(name: str) -> pd.DataFrame:
    return pd.read_csv(STUDIES / f"{name}.csv", index_col="run")


def _gains(study: str, run: str, base: str) -> pd.Series:
    """PSNR of a run of a study less that of another, by column of the study."""
    runs = _study(study).filter(regex="^psnr-")
    return runs.loc[run] - runs.loc[base]


def speed_table() -> str:
    """The last record of `make bench`, as Markdown."""
    record = pd.read_csv(ROOT / "data" / "results" / "studies" / "bench.csv")
    lines = ["| what | | on |", "|---|---:|---|"]
    lines += [f"| {row.work} | {row.value:.4g} {row.unit} | {row.device}, {row.instructions} |" for row in record.itertuples()]
    return "\n".join(lines)


def readme_with(parts: dict[str, str], readme: str) -> str:
    """README text with each part between the two marks of its name; raises InputError if they are not there."""
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, mark, rest = readme.partition(begin)
        _, closed, after = rest.partition(end)
        if not (mark and closed):
            raise InputError(f"README.md: the marks {begin} and {end} are missing; put them where the table belongs")
        readme = f"{before}{begin}\n{part}\n{end}{after}"
    return readme


def readme_parts() -> dict[str, str]:
    """Name of the marks -> what stands between them."""
    return {
        "psnr-table": tables.main_tables(tables.read_results(), tables.read_published()),
        "speed-table": speed_table(),
    }


def main() -> None:
    write_table(headline(), PLACE)
    path = ROOT / "README.md"
    text = readme_with(readme_parts(), path.read_text(encoding="utf-8"))
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{path.name} and {PLACE.name} are those of the rows")


if __name__ == "__main__":
    cli.run(main)
