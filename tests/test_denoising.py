"""Pictures of the user's own, end to end: the situations that users have, batches, interruptions, results that are not ours."""

import csv
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage import data
from test_photo import COLOUR, GREY, PROFILE, TRANSPARENT, deep_png, pillow, tiff

from n2s_utils import __main__, batch, cli, denoiser, estimation, evaluation, noise, photo
from n2s_utils.denoising import Way
from n2s_utils.files import ROOT


def noisy(pixels, sigma=25.0):
    """As a file has it: clipped and rounded."""
    values = pixels + sigma * np.random.default_rng(0).standard_normal(pixels.shape)
    return values.round().clip(0, 255).astype(np.uint8)


NOISY, NOISY_GREY = noisy(COLOUR), noisy(GREY)
CLEAN = COLOUR.astype(np.float32) / 255


def n2s(*arguments, **settings):
    command = [sys.executable, "-m", "n2s_utils", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="surrogateescape", **settings)


@pytest.fixture
def run(monkeypatch, capsys):
    """A command of n2s in this process: (status, stdout, stderr)."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["n2s", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.run(__main__.run)
        output = capsys.readouterr()
        return caught.value.code or 0, output.out, output.err

    return command


def rows_of(folder):
    with open(folder / batch.RECORD, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _exif(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(NOISY)).save(path, "JPEG", quality=97, exif=exif)


def _long_text(path):
    from PIL import PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    Image.fromarray(NOISY).save(path, pnginfo=text)


def _animation(path):
    Image.fromarray(NOISY).save(path, save_all=True, append_images=[Image.fromarray(np.roll(NOISY, 9, 1))])


DEEP, DEEP_GREY = NOISY.astype(np.uint16) * 257, NOISY_GREY.astype(np.uint16) * 257
RGBA = np.dstack([NOISY, TRANSPARENT[:, :, 3]])
# What users have -> what makes it; the type, shape and a property of the result, or what the refusal says.
SITUATIONS = {
    "exif-portrait.jpg": (_exif, np.uint8, COLOUR.shape, lambda image: image.getexif().get(0x0112, 1) == 1),
    "icc_p3-phone.png": (pillow(NOISY, "PNG", icc_profile=PROFILE), np.uint8, COLOUR.shape, lambda i: i.info["icc_profile"] == PROFILE),
    "alpha-logo.png": (pillow(RGBA, "PNG"), "transparent"),
    "grey-grey.png": (pillow(NOISY_GREY, "PNG"), np.uint8, GREY.shape, lambda image: image.mode == "L"),
    "noisycolour-a.png": (pillow(NOISY, "PNG"), np.uint8, COLOUR.shape, lambda image: image.mode == "RGB"),
    "grey16-full16.png": (deep_png(DEEP_GREY), np.uint16, GREY.shape, None),
    "rgb16tif-rgb16.tif": (tiff(DEEP, photometric="rgb"), np.uint16, COLOUR.shape, None),
    "twelvebit-cell12.tif": (tiff(np.uint16(NOISY_GREY / 255 * 4095)), np.uint16, GREY.shape, None),
    "int16neg-i16neg.tif": (tiff(NOISY_GREY.astype(np.int16) - 40), "signed"),
    "planar16-planar16.tif": (
        tiff(np.ascontiguousarray(np.moveaxis(DEEP, 2, 0)), photometric="rgb", planarconfig="separate"),
        np.uint16,
        np.moveaxis(COLOUR, 2, 0).shape,
        None,
    ),
    "floatrgb-frgb.tif": (tiff(np.float32(NOISY / 255), photometric="rgb"), np.float32, COLOUR.shape, None),
    "float64-f64.tif": (tiff(NOISY_GREY / 255), np.float64, GREY.shape, None),
    "stack-stack.tif": (tiff(np.stack([NOISY_GREY] * 5), photometric="minisblack"), "stack of 5 pages"),
    "apng-anim.png": (_animation, "animation of 2 frames"),
    "corrupt-2.png": (lambda path: (pillow(NOISY, "PNG")(path), path.write_bytes(path.read_bytes()[:9000])), "not a readable image"),
    "bigtext-made_with_editor.png": (_long_text, np.uint8, COLOUR.shape, None),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_situations_of_users(tmp_path, run, name):
    make, *expected = SITUATIONS[name]
    (tmp_path / "in").mkdir()
    make(tmp_path / "in" / name)
    status, said, complained = run("denoise", tmp_path / "in" / name, "--out", tmp_path / "out", "--sigma", 25)
    result = tmp_path / "out" / name
    if len(expected) == 1:
        assert status == 2 and expected[0] in said and name in complained and not result.exists()
        return
    dtype, shape, holds = expected
    assert status == 0 and complained == ""
    pixels = tifffile.imread(result) if name.endswith(".tif") else np.asarray(Image.open(result))
    assert pixels.shape == shape and (pixels.dtype == dtype)
    if holds:
        with Image.open(result) as image:
            assert holds(image)
    clean = CLEAN if len(shape) == 3 else GREY[:, :, None] / 255
    picture = photo.read(result).picture
    before = (NOISY if len(shape) == 3 else NOISY_GREY[:, :, None]) / 255
    assert evaluation.psnr(clean, picture) > evaluation.psnr(clean, before) + 6


def test_one_photo_goes_beside_with_its_noise_estimated_and_printed(tmp_path, run):
    pillow(NOISY, "PNG")(tmp_path / "photo.png")
    status, said, _ = run("denoise", tmp_path / "photo.png")
    [line] = [line for line in said.splitlines() if "estimated" in line]
    assert status == 0 and float(line.split()[-1]) == pytest.approx(25, rel=0.05) and "warning" not in said
    clean = evaluation.psnr(CLEAN, photo.read(tmp_path / "photo-denoised.png").picture)
    assert clean > evaluation.psnr(CLEAN, NOISY / 255) + 7
    [row] = rows_of(tmp_path)
    assert row["output"] == "photo-denoised.png" and row["noise"].startswith("gaussian noise, sigma 2")


@pytest.mark.parametrize(
    "model", [noise.Gaussian(25.0), noise.Poisson(0.03), noise.PoissonGaussian(0.02, 10.0), noise.Gamma(40.0)], ids=str
)
def test_every_model_is_estimated_or_told(tmp_path, run, model):
    y = noise.realization(CLEAN, model, "own", "a", 0)
    Image.fromarray((255 * y).round().clip(0, 255).astype(np.uint8)).save(tmp_path / "a.png")
    told = [part for name, value in model.parameters.items() for part in (f"--{name}", value)]
    for options in (["--noise", model.name], told):
        status, said, _ = run("denoise", tmp_path / "a.png", *options, "--force")
        assert status == 0 and f"{model.name} noise" in said
        output = photo.read(tmp_path / "a-denoised.png").picture
        assert evaluation.psnr(CLEAN, output) > evaluation.psnr(CLEAN, y) + 5


def test_clipping_is_undone_in_integer_files_unless_told_otherwise(tmp_path, run):
    y = noise.realization(CLEAN, noise.Gaussian(50.0), "own", "a", 0)
    Image.fromarray((255 * y).round().clip(0, 255).astype(np.uint8)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", y, photometric="rgb")
    quality = {}
    for name in ("a.png", "b.tif"):
        for clipped in ("auto", "no", "yes"):
            run("denoise", tmp_path / name, "--sigma", 50, "--clipped", clipped, "--out", tmp_path / clipped)
            quality[name, clipped] = evaluation.psnr(CLEAN, photo.read(tmp_path / clipped / name).picture)
    assert quality["a.png", "auto"] == quality["a.png", "yes"] > quality["a.png", "no"] + 0.5
    assert quality["b.tif", "auto"] == quality["b.tif", "no"] > quality["b.tif", "yes"] + 0.5


def _jpeg(pixels, path):
    Image.fromarray(pixels).save(path, quality=90)


LARGE = data.astronaut()[:256, 100:400]


def _counts(zeta, white=255):
    """LARGE as counts of that gain, as a file has it."""
    values = white * noise.Poisson(zeta).sample(LARGE / 255, np.random.default_rng(0))
    return values.round().clip(0, 255).astype(np.uint8) if white > 1 else values


WARNED = {
    "white.png": (lambda path: pillow(noisy(LARGE), "PNG")(path), [], ""),
    "slight.png": (lambda path: pillow(noisy(LARGE, 6.0), "PNG")(path), [], ""),
    "photo.jpg": (lambda path: _jpeg(noisy(LARGE), path), [], "not white"),
    "large.png": (lambda path: Image.fromarray(noisy(LARGE)).resize((600, 512), 3).save(path), [], "not white"),
    "level.png": (lambda path: pillow(noisy(LARGE), "PNG")(path), ["--sigma", 0.1], "0-255 scale"),
    "strong.png": (lambda path: pillow(noisy(LARGE), "PNG")(path), ["--sigma", 90], "sigma 90 lies outside 5 to 60"),
    "clean.png": (lambda path: pillow(LARGE, "PNG")(path), [], "lies outside 5 to 60"),
    "no-counts.png": (
        lambda path: pillow(noisy(LARGE), "PNG")(path),
        ["--zeta", 0.02],
        "not counts: the values are no multiples of zeta 0.02",
    ),
    "no-counts.tif": (
        lambda path: tifffile.imwrite(path, np.float32(LARGE / 255) ** 0.5, photometric="rgb"),
        ["--zeta", 0.02],
        "not counts",
    ),
    "camera.png": (lambda path: pillow(noisy(LARGE), "PNG")(path), ["--zeta", 0.02, "--sigma", 10], ""),
    "counts.png": (lambda path: pillow(_counts(0.02), "PNG")(path), ["--zeta", 0.02], ""),
    "counts.tif": (lambda path: tifffile.imwrite(path, _counts(0.02, 1.0), photometric="rgb"), ["--zeta", 0.02], ""),
    "too-coarse.png": (lambda path: pillow(noisy(LARGE), "PNG")(path), ["--zeta", 0.005], ""),
}


@pytest.mark.parametrize("name", WARNED)
def test_what_the_method_does_not_assume_is_warned_of(tmp_path, run, name):
    make, options, warned = WARNED[name]
    make(tmp_path / name)
    status, said, _ = run("denoise", tmp_path / name, *options)
    assert status == 0 and (warned in said if warned else "warning" not in said)


def test_what_leaves_no_noise_to_estimate_is_one_line(tmp_path, run):
    Image.fromarray(np.full((64, 64), 128, np.uint8)).save(tmp_path / "flat.png")
    Image.fromarray(NOISY[:20, :20]).save(tmp_path / "small.png")
    status, said, complained = run("denoise", tmp_path)
    assert status == 2 and "one value alone" in said and "too small" in said and "flat.png, small.png" in complained
    assert run("denoise", tmp_path, "--sigma", 25)[0] == 0


# A batch is not a transaction.


@pytest.fixture
def folder(tmp_path):
    """What a folder of pictures also holds."""
    inside = tmp_path / "in"
    inside.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        pillow(NOISY[:64, :64], "PNG")(inside / name)
    (inside / "b.png").write_bytes((inside / "b.png").read_bytes()[:3000])
    for name in ("._a.png", ".b.part.png", "notes.txt"):
        (inside / name).write_bytes(b"")
    (inside / "album.png").mkdir()
    (inside / "dead.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(inside / "pipe.png")
    return inside


def test_a_bad_picture_is_named_at_the_end_and_costs_no_other(folder, tmp_path, run):
    status, said, complained = run("denoise", folder, "--out", tmp_path / "out")
    assert status == 2 and complained.count("\n") == 1 and "1 of 3 pictures" in complained and complained.rstrip().endswith("b.png")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png", batch.RECORD]
    for reason in ("2 names that begin with a dot", "1 folders", "1 dead links", "1 files of another kind", "1 no files"):
        assert f"left out: {reason}" in said


def test_results_are_no_inputs_of_the_next_run(folder, tmp_path, run):
    (folder / "b.png").unlink()
    for _ in range(2):
        status, said, _ = run("denoise", folder)
        assert status == 0
    assert "left out: 2 results of an earlier run" in said and said.count("done before") == 2
    assert sorted(path.name for path in folder.glob("*denoised*")) == ["a-denoised.png", "c-denoised.png", batch.RECORD]


def test_the_same_command_goes_on_and_another_one_begins_anew(folder, tmp_path, run):
    (folder / "b.png").unlink()
    one = ["denoise", folder / "a.png", "--out", tmp_path / "out"]
    run(*one)
    first = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    assert "done before" in run(*one)[1] and (tmp_path / "out" / "a.png").stat().st_mtime_ns == first
    assert "written" in run(*one, "--sigma", 20)[1]
    pillow(NOISY[8:72, :64], "PNG")(folder / "a.png")
    assert "written" in run(*one, "--sigma", 20)[1]
    assert [row["noise_given"][:9] for row in rows_of(tmp_path / "out")] == ["estimated", "gaussian ", "gaussian "]


@pytest.mark.parametrize("place", ["read", "estimate", "_pass", "write", "add", "replace"])
def test_ctrl_c_loses_nothing(folder, tmp_path, run, monkeypatch, place):
    """Stopped at the second picture, wherever that is; the same command then does what is left."""
    (folder / "b.png").unlink()
    owner = {"read": photo, "estimate": estimation, "_pass": denoiser.Denoiser, "write": photo, "add": batch.Record, "replace": Path}[place]
    real, calls = getattr(owner, place), []

    def stopping(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, place, stopping)
        status, _, complained = run("denoise", folder, "--out", tmp_path / "out")
    assert status == 130 and "1 pictures are done; the same command goes on" in complained
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    status, said, _ = run("denoise", folder, "--out", tmp_path / "out")
    assert status == 0 and said.count("done before") == 1 and said.count("written") == 1
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"a.png", "c.png"}


def test_what_is_not_ours_is_not_replaced_unless_forced(folder, tmp_path, run):
    (folder / "b.png").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"the only copy")
    status, said, complained = run("denoise", folder, "--out", tmp_path / "out")
    assert status == 2 and "is not a result of this command" in said and "1 of 2 pictures" in complained
    assert (tmp_path / "out" / "a.png").read_bytes() == b"the only copy" and (tmp_path / "out" / "c.png").exists()
    assert run("denoise", folder, "--out", tmp_path / "out", "--force")[0] == 0
    (tmp_path / "out" / "a.png").write_bytes(b"retouched by hand")
    assert run("denoise", folder, "--out", tmp_path / "out", "--sigma", 20)[0] == 2
    assert (tmp_path / "out" / "a.png").read_bytes() == b"retouched by hand"
    (tmp_path / "out" / batch.RECORD).write_text("another program's table\n", encoding="utf-8")
    status, said, _ = run("denoise", folder, "--out", tmp_path / "out")
    assert status == 2 and "not a record of ours" in said


def test_results_that_would_replace_inputs_or_each_other_are_refused_before_the_first(folder, tmp_path, run):
    out = tmp_path / "out"
    out.mkdir()
    pillow(NOISY, "PNG")(out / "original.png")
    links = tmp_path / "links"
    links.mkdir()
    (links / "original.png").symlink_to(out / "original.png")
    before = (out / "original.png").read_bytes()
    Image.fromarray(NOISY).quantize(64).save(folder / "a.gif")
    (tmp_path / "other").mkdir()
    pillow(NOISY, "PNG")(tmp_path / "other" / "A.png")
    for inputs, place, reason in (
        ([links], out, "would replace an input"),
        ([folder], folder, "would replace an input"),
        ([folder / "a.gif", folder / "a.png"], out, "would both become"),
        ([folder / "a.png", tmp_path / "other"], out, "would both become"),
    ):
        status, said, complained = run("denoise", *inputs, "--out", place, "--force")
        assert status == 2 and reason in complained and "[1/" not in said
    assert (out / "original.png").read_bytes() == before


def test_a_place_that_cannot_be_written_to_is_refused_before_the_first(folder, tmp_path, run):
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    for place in (tmp_path / "out", tmp_path / "out" / "deeper"):
        status, said, complained = run("denoise", folder, "--out", place)
        assert status == 2 and "no folder that can be written to" in complained and "[1/" not in said


def test_a_picture_given_twice_is_done_once(folder, tmp_path, run):
    status, said, _ = run("denoise", folder, folder / "a.png", folder, "--out", tmp_path / "out", "--sigma", 25)
    assert status == 2 and "[3/3]" in said and sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["a.png", "c.png"]


def test_processes_that_share_a_folder_lose_no_row_and_a_cut_off_row_is_got_over(tmp_path):
    row = dict.fromkeys(batch.COLUMNS, "x")
    adding = "\n".join(
        [
            "import sys; from pathlib import Path; from n2s_utils import batch",
            "for number in range(100):",
            f"    batch.Record(Path({str(tmp_path)!r})).add({row!r} | {{'output': f'{{sys.argv[1]}}{{number}}'}})",
        ]
    )
    processes = [subprocess.Popen([sys.executable, "-c", adding, letter]) for letter in "ab"]
    assert not any(process.wait() for process in processes)
    record = batch.Record(tmp_path)
    assert len({r["output"] for r in record.rows}) == 200
    with open(record.path, "a", encoding="utf-8") as file:
        file.write("cut,off")
    record.add(row)
    assert len(record.rows) == 201 and record.rows[-1] == row


def test_a_table_of_the_users_own_in_the_folder_is_left_alone(folder, tmp_path, run):
    (folder / batch.RECORD).write_text("another program's table\n", encoding="utf-8")
    (folder / "b.png").unlink()
    assert run("denoise", folder, "--out", tmp_path / "out")[0] == 0
    assert (folder / batch.RECORD).read_text(encoding="utf-8") == "another program's table\n"


def test_a_drawing_with_flat_areas_costs_no_other_picture(tmp_path, run):
    drawing = np.full((200, 200), 200, np.uint8)
    drawing[90:110] = 0
    (tmp_path / "in").mkdir()
    Image.fromarray(drawing).save(tmp_path / "in" / "a.png")
    pillow(NOISY, "PNG")(tmp_path / "in" / "b.png")
    status, said, complained = run("denoise", tmp_path / "in", "--out", tmp_path / "out")
    assert status == 2 and "shows none" in said and complained.rstrip().endswith("a.png") and (tmp_path / "out" / "b.png").exists()
    assert run("denoise", tmp_path / "in" / "a.png", "--sigma", 20)[0] == 0


def test_an_encoder_that_gives_up_costs_no_other_picture(folder, tmp_path, run, monkeypatch):
    (folder / "b.png").unlink()

    def failing(source, picture, path):
        raise ValueError("EXIF data is too long")

    monkeypatch.setattr(photo, "_write", failing)
    status, said, complained = run("denoise", folder, "--out", tmp_path / "out", "--sigma", 25)
    assert status == 2 and "not written as PNG (EXIF data is too long)" in said and "2 of 2 pictures" in complained
    assert not list((tmp_path / "out").glob("*"))


def test_nothing_to_do_is_one_line(folder, tmp_path, run):
    (tmp_path / "empty").mkdir()
    status, _, complained = run("denoise", tmp_path / "empty")
    assert status == 2 and "no picture there" in complained and complained.count("\n") == 1
    assert run("denoise", tmp_path / "absent.png")[0] == 2
    for options in (["--noise", "gaussian", "--sigma", 20], ["--sigma", 20, "--k", 50], ["--sigma", -1], ["--weights", tmp_path / "none"]):
        status, said, complained = run("denoise", folder, "--out", tmp_path / "out", *options)
        assert status == 2 and complained.count("\n") == 1 and "[1/" not in said
    assert not (tmp_path / "out").exists()


def test_names_that_are_long_or_no_text(tmp_path):
    (tmp_path / "in").mkdir()
    names = ["n" * 248 + ".png", os.fsdecode(b"caf\xe9.png"), "caf\u00e9 \u2014.png"]
    for name in names:
        pillow(NOISY[:64, :64], "PNG")(tmp_path / "in" / name)
    done = n2s("denoise", tmp_path / "in", "--out", tmp_path / "out", "--sigma", 25, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "\\udce9" in done.stdout and "\\u2014" in done.stdout, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == sorted(names)
    assert n2s("denoise", tmp_path / "in", "--out", tmp_path / "out", "--sigma", 25).stdout.count("done before") == 3
    beside = n2s("denoise", tmp_path / "in", "--sigma", 25)  # NAME-denoised is too long for one of them
    assert beside.returncode == 2 and "1 of 3 pictures" in beside.stderr and "Traceback" not in beside.stderr


def test_damaged_files_in_a_folder_cost_no_other(tmp_path):
    rng, whole = np.random.default_rng(1), {}
    for name, make in (
        ("a.png", pillow(NOISY[:64, :64], "PNG")),
        ("a.jpg", pillow(NOISY[:64, :64], "JPEG")),
        ("a.tif", tiff(NOISY_GREY[:64, :64])),
    ):
        make(tmp_path / name)
        whole[name] = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
    (tmp_path / "in").mkdir()
    for number in range(36):
        name = list(whole)[number % 3]
        damaged = bytearray(whole[name])[: rng.integers(1, len(whole[name])) if number % 2 else None]
        for place in rng.integers(0, min(len(damaged), 300), 6):
            damaged[place] ^= int(rng.integers(1, 256))
        (tmp_path / "in" / f"{number}{name[1:]}").write_bytes(damaged)
    (tmp_path / "in" / "sound.png").write_bytes(whole["a.png"])
    done = n2s("denoise", tmp_path / "in", "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stdout
    assert (tmp_path / "out" / "sound.png").exists() and "of 37 pictures" in done.stderr


def test_memory_that_does_not_suffice_halves_the_tiles_and_is_one_line_at_last(monkeypatch, refused):
    network = denoiser.load(ROOT / "data" / "weights" / "grey-antithetic.safetensors", noise.Gaussian(25.0)).network
    whole, sizes = denoiser.Denoiser(network, noise.Gaussian(25.0)), []
    y = noise.realization(np.full((600, 640, 1), 0.5, np.float32), noise.Gaussian(25.0), "s", "a", 0)
    expected, real = whole(y), denoiser.Denoiser._pass

    def scarce(self, c, most=500_000):
        sizes.append(c.size)
        if c.size > most:
            raise torch.OutOfMemoryError("CUDA out of memory") if len(sizes) % 2 else RuntimeError("can't allocate memory")
        return real(self, c)

    monkeypatch.setattr(denoiser.Denoiser, "_pass", lambda self, c: scarce(self, c, 360_000))
    np.testing.assert_allclose(whole(y), expected, atol=1e-4)
    assert sizes[0] == 600 * 640 and len(sizes) > 4
    monkeypatch.setattr(denoiser.Denoiser, "_pass", lambda self, c: scarce(self, c, 0))
    with refused("640x600", "out of memory, even in tiles"):
        whole(y)


def test_weights_of_ones_own_are_used_as_they_were_trained(tmp_path, run):
    pillow(NOISY, "PNG")(tmp_path / "a.png")
    own = ROOT / "data" / "weights" / "colour-gaussian25-antithetic.safetensors"
    status, said, _ = run("denoise", tmp_path / "a.png", "--weights", own, "--sigma", 30)
    assert status == 0 and "trained on gaussian noise of sigma 25" in said
    pillow(NOISY_GREY, "PNG")(tmp_path / "grey.png")
    status, said, _ = run("denoise", tmp_path / "grey.png", "--weights", own, "--sigma", 25)
    assert status == 2 and "for 3 channel(s), the pictures have 1" in said


def test_the_default_way_serves_grey_and_colour():
    way = Way()
    assert way.weights_for(CLEAN).name == "colour-gr2r.safetensors"
    assert way.weights_for(CLEAN[:, :, :1]).name == "grey-gr2r.safetensors"


def test_the_package_without_a_checkout_denoises_and_says_what_it_lacks(tmp_path):
    """Laid out as its wheel is."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    [package] = wheel["packages"]
    shutil.copytree(ROOT / package, tmp_path / "site" / package, ignore=shutil.ignore_patterns("__pycache__"))
    for source, target in wheel["force-include"].items():
        (tmp_path / "site" / target).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / source, tmp_path / "site" / target)
    for name, pixels in (("colour.png", NOISY), ("grey.png", NOISY_GREY)):
        pillow(pixels, "PNG")(tmp_path / name)
    settings = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(tmp_path / "site")}}
    done = n2s("denoise", "colour.png", "grey.png", **settings)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "colour-denoised.png").exists() and (tmp_path / "grey-denoised.png").exists()
    config = ROOT / "data" / "weights" / "grey-antithetic.toml"
    for command in (["report"], ["download"], ["train", config, "start="]):
        done = n2s(*command, **settings)
        assert done.returncode == 2 and "in a checkout of the repository alone" in done.stderr and done.stderr.count("\n") == 1


def test_commands_are_under_one_roof(run):
    status, said, _ = run()
    assert status == 0 and all(name in said for name in __main__.COMMANDS)
    status, _, complained = run("denoize")
    assert status == 2 and "choose one of denoise, train, evaluate, download, report" in complained
    for name in __main__.COMMANDS:
        status, said, _ = run(name, "--help")
        assert status == 0 and said.startswith(f"usage: n2s {name}")
