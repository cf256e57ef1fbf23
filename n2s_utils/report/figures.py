"""Pictures for the notebooks."""

import io

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
from IPython.display import Image, display
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


def save(figure: Figure, name: str, output: str) -> None:
    """Write `figure` to OUTPUT/figures/NAME, OUTPUT relative to the repository's root, and show it once in the notebook.

    Plots become .png of 256 colours; figures that hold pictures .jpg, since noise makes a PNG several times as large.
    Both are kept small, for the repository holds each twice.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    picture = PIL.Image.open(buffer).convert("RGB")
    pictures = any(axis.images for axis in figure.axes)
    path = ROOT / output / "figures" / f"{name}.{'jpg' if pictures else 'png'}"
    with atomic_write(path) as temporary:
        if pictures:
            picture.save(temporary, "JPEG", quality=75)
        else:
            picture.quantize(dither=PIL.Image.Dither.NONE).save(temporary, "PNG", optimize=True)
    display(Image(path, embed=True))


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
