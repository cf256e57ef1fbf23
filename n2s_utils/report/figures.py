"""Figures and tables for the notebooks."""

import html
import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
from IPython import get_ipython
from IPython.display import HTML, Image, Markdown, display
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from n2s_utils.evaluation import psnr
from n2s_utils.files import ROOT, atomic_write

plt.rcParams |= {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
}


def save(figure: Figure, name: str, output: str, caption: str, rows: str = "") -> None:
    """Show `figure` once in the notebook, with `caption` (plain text, a sentence or two) as alternative text and below it, and write
    it to OUTPUT/figures/NAME, OUTPUT relative to the repository's root.

    A line under the caption names the cell, and `rows`, the table (or folder) that the figure was drawn from, where there is
    one. Plots become .png of 256 colours; figures that hold pictures .jpg, since noise makes a PNG several times as large. In the
    repository itself (OUTPUT ".") only what the README links is written: the notebook holds the others.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    picture, coded = PIL.Image.open(buffer).convert("RGB"), io.BytesIO()
    pictures = any(axis.images for axis in figure.axes)
    if pictures:
        picture.save(coded, "JPEG", quality=75)
    else:
        picture.quantize(dither=PIL.Image.Dither.NONE).save(coded, "PNG", optimize=True)
    file = f"figures/{name}.{'jpg' if pictures else 'png'}"
    if output != "." or f"]({file})" in (ROOT / "README.md").read_text(encoding="utf-8"):
        with atomic_write(ROOT / output / file) as temporary:
            temporary.write_bytes(coded.getvalue())
    kind = "image/jpeg" if pictures else "image/png"
    display(Image(coded.getvalue()), metadata={kind: {"alt": caption}})
    display(HTML(f"<figcaption>{html.escape(caption)}<br><small>{_origin(rows)}</small></figcaption>"))


def table(rows: pd.DataFrame, caption: str, digits: int = 2) -> Markdown:
    """`rows` as a table under its `caption` (Markdown, the first sentence in bold): numbers with `digits` decimals, a dash where
    there is none.

    Raises ValueError for more than seven columns, those of the index counted: a narrow screen shows no more.
    """
    first, end, rest = caption.partition(". ")
    return Markdown(f"**{first}{end.strip()}** {rest}".rstrip() + f"\n\n{to_markdown(rows, digits)}")


def to_markdown(rows: pd.DataFrame, digits: int = 2) -> str:
    """The same without a caption; columns called "to ..." or "gain ..." are differences, and have a sign."""
    names = [] if rows.index.name is None and isinstance(rows.index, pd.RangeIndex) else [name or "" for name in rows.index.names]
    heads = [" ".join(map(str, column)) if isinstance(column, tuple) else str(column) for column in rows.columns]
    if len(names + heads) > 7:
        raise ValueError(f"a table of {len(names + heads)} columns; show at most 7")
    last = [str(column[-1] if isinstance(column, tuple) else column) for column in rows.columns]
    signs = ["+" if name.startswith(("to ", "gain")) else "" for name in last]
    right = ["---:" if pd.api.types.is_numeric_dtype(kind) else "---" for kind in rows.dtypes]
    lines = ["| " + " | ".join(names + heads) + " |", "|" + "|".join(["---"] * len(names) + right) + "|"]
    for key, row in zip(rows.index, rows.itertuples(index=False), strict=True):
        places = [_cell(part, "g") for part in (key if isinstance(key, tuple) else (key,))] if names else []
        cells = [_cell(value, f"{sign}.{digits}f") for value, sign in zip(row, signs, strict=True)]
        lines.append("| " + " | ".join(places + cells) + " |")
    return "\n".join(lines)


def parameters(PROFILE: str, **values: object) -> Markdown:  # noqa: N803 named as in the notebooks
    """What a notebook was run with, and whether the numbers in its text are those of this run."""
    parts = [f"profile `{PROFILE}`", *(f"`{name}` {_listed(value)}" for name, value in values.items())]
    same = "The numbers in the text are those of the profile `paper`" + ("." if PROFILE == "paper" else "; below are those of this run.")
    return Markdown(f"*This run:* {', '.join(parts)}. {same}")


def _listed(value: object) -> str:
    """A list without brackets and quotes, one within it set off by spaces alone."""
    if isinstance(value, list):
        return ", ".join(" ".join(map(_listed, part)) if isinstance(part, list) else _listed(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value) or "empty"


def _cell(value: object, form: str) -> str:
    if isinstance(value, str):
        return value.replace("|", "\\|")
    if pd.isna(value):
        return "-"
    if isinstance(value, float | np.floating):
        return f"{value:{form}}"
    return f"{value:,}" if isinstance(value, int | np.integer) else str(value)


def _origin(rows: str) -> str:
    shell = get_ipython()
    cell = len(shell.user_ns["In"]) - 1 if shell else "-"
    place = f'; rows: <a href="../data/results/{rows}">{rows.rstrip("/").rpartition("/")[2]}</a>' if rows else ""
    return f"Cell {cell}{place}"


def show_pictures(
    pictures: dict[str, np.ndarray], zoom: tuple[int, int, int] | None = None, columns: int = 4, width: float = 3.0
) -> Figure:
    """Pictures (H, W, C) of one size in rows of `columns` under their titles, clamped to [0, 1], each `width` inches wide.

    `zoom` = (top, left, size) frames a square and repeats it enlarged in the lower right corner.
    """
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    height, breadth = next(iter(pictures.values())).shape[:2]
    size = (width * columns, (width * height / breadth + 0.35) * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, picture) in zip(axes.flat, pictures.items(), strict=False):
        _show(axis, picture)
        axis.set_title(title, fontsize=9)
        if zoom:
            top, left, side = zoom
            axis.add_patch(Rectangle((left, top), side, side, fill=False, color="gold", lw=1))
            inset = axis.inset_axes([0.58, 0.0, 0.42, 0.42 * breadth / height])
            _show(inset, picture[top : top + side, left : left + side])
            inset.set(xticks=[], yticks=[])
            inset.grid(False)
            inset.spines[:].set(visible=True, color="gold")
    return figure


def _show(axis, picture: np.ndarray) -> None:
    axis.imshow(np.clip(picture, 0, 1).squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def show_comparison(title: str, clean: np.ndarray, outputs: dict[str, np.ndarray]) -> Figure:
    """A clean picture under `title` beside the outputs of several methods, each titled with its PSNR, all zoomed alike."""
    height, width = clean.shape[:2]
    titled = {f"{name}, {psnr(clean, output):.2f} dB": output for name, output in outputs.items()}
    return show_pictures({title: clean} | titled, zoom=(height // 3, width // 3, min(height, width) // 5))
