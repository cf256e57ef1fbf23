"""Denoise pictures of your own: n2s denoise PICTURE|FOLDER ... [--out FOLDER] [--noise MODEL|auto | --sigma S ...]

photo.jpg becomes photo-denoised.jpg beside it, or photo.jpg in the folder --out. The network, colour or grey, is chosen by the
picture. The noise is estimated from each picture and printed, unless its parameter is given. Run the same command again after
an interruption: what is done already is left as it is.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from n2s_utils import batch, cli, denoiser, estimation, machine, noise, photo, weights
from n2s_utils.batch import Job
from n2s_utils.cli import InputError
from n2s_utils.clipping import unclipped
from n2s_utils.denoiser import Denoiser
from n2s_utils.files import atomic_write, sha256
from n2s_utils.mixture import Mixture
from n2s_utils.photo import Photo

# Of estimation.levels, as notebook 11 shows them: the ratio from which noise is not white, the least level, and that below which
# texture may pass for such noise.
WHITE, QUIET, FAINT = 1.2, 1.0, 3.0


@dataclass(frozen=True)
class Way:
    """How pictures are denoised: `given` is their noise, or where None it is estimated from each, of the model named `name`
    ("auto": chosen too). `clipped` says whether their values below black or above white were cut off; None: as the file is of
    integers or not. `weights` None: the shipped ones that serve every noise.
    """

    given: noise.Model | None = None
    name: str = "gaussian"
    clipped: bool | None = None
    weights: Path | None = None
    memory: float = denoiser.MEMORY
    device: str = "cpu"

    def weights_for(self, picture: np.ndarray) -> Path:
        """The weights file for a picture (H, W, C)."""
        return self.weights or weights.for_every_noise(picture.shape[2])

    def cut(self, source: Photo) -> bool:
        """Whether the noise of a photo is clipped."""
        return source.clipped if self.clipped is None else self.clipped

    def noise_of(self, source: Photo) -> noise.Model:
        """The noise of a photo; raises InputError where it cannot be estimated."""
        if self.given:
            return self.given
        if self.name == "auto":
            return estimation.choose(source.picture, self.cut(source))
        return estimation.estimate(source.picture, self.name, self.cut(source))

    def warnings(self, source: Photo, model: noise.Model) -> list[str]:
        """What the method assumes and this photo with this noise is not, a line each, with what to expect."""
        found, trained = [], denoiser.trained_noise(self.weights_for(source.picture))
        if isinstance(trained, Mixture) and (missed := trained.misses(model)):
            found.append(f"{missed}, which the network was trained for: expect a result that is less sure, or hardly changed")
        elif not isinstance(trained, Mixture) and trained != model:
            found.append(f"the weights were trained on {trained}; used on {model} by a change of variables")
        if type(self.given) is noise.Poisson and not _may_be_counts(source, self.given.zeta):
            found.append(f"not counts: the values are no multiples of zeta {self.given.zeta:g}; is the variance zeta times the brightness?")
        try:
            every, second = estimation.levels(source.picture, self.cut(source))
            if second > max(WHITE * every, QUIET):
                guess = estimation.level_of_correlated(source.picture, self.cut(source))
                quiet = ", or there is hardly any noise" if every < FAINT else ""
                advice = "" if self.given else f": expect most of it to stay, and try --sigma {guess:.0f}"
                found.append(
                    f"the noise is not white (every second pixel shows {second / every:.1f} times that of all), as in a JPEG, or a photo "
                    f"enlarged, demosaiced or denoised before{quiet}{advice}"
                )
        except InputError:
            pass  # too small to tell
        return found

    def __call__(self, source: Photo, model: noise.Model) -> np.ndarray:
        """The posterior mean of a photo with that noise, (H, W, C)."""
        loaded = denoiser.load(self.weights_for(source.picture), model, source.picture.shape[2], self.device)
        precision = machine.precision_of("auto", self.device)
        output = Denoiser(loaded.network, model, self.memory, precision)(source.picture)
        return unclipped(output, model) if self.cut(source) else output


def _may_be_counts(source: Photo, zeta: float) -> bool:
    """Whether the values are multiples of zeta, as far as a file of integers can tell."""
    if source.clipped and 1 / source.white > zeta / 2:  # steps of a file of integers
        return True
    counts = source.picture[source.picture < 1] / zeta  # white may be cut off
    # The mean distance to a whole number is at most 1/8 after rounding to half a count, and 1/4 for any other values.
    return not counts.size or np.abs(counts - np.rint(counts)).mean() < 0.16


def denoise_one(job: Job, way: Way, force: bool = False) -> bool:
    """Denoise one picture file; False where the result is there already, from the same input, weights and noise.

    Raises InputError for a picture that cannot be denoised, and for a result that would replace what is not ours, unless `force`.
    """
    source, record, began = photo.read(job.input), batch.Record(job.output.parent), time.monotonic()
    of = {
        "input": batch.shown(job.input),
        "input_sha256": sha256(job.input),
        "weights_sha256": sha256(way.weights_for(source.picture)),
        "noise_given": str(way.given) if way.given else f"estimated, {way.name}",
        "clipped": str(way.cut(source)),
    }
    made = record.of(job.output)
    if any(of.items() <= row.items() for row in made) and not force:
        return False
    if job.output.exists() and not made and not force:
        raise InputError(f"{job.output}: exists and is not a result of this command; give --force to replace it, or another --out")
    model = way.noise_of(source)
    lines = [*source.notes, *(f"warning: {line}" for line in way.warnings(source, model))]
    for line in [f"{'noise given' if way.given else 'estimated'}: {_words(model)}", *lines]:
        print(f"  {line}", flush=True)
    output = way(source, model)
    with atomic_write(job.output) as temporary:
        photo.write(source, output, temporary)
        # Kept before the result appears: stopped in between, it is done again, and never taken for another's.
        made_now = {"output": batch.shown(job.output), "output_sha256": sha256(temporary), "noise": _words(model)}
        seconds = f"{time.monotonic() - began:.1f}"
        record.add(of | made_now | {"seconds": seconds, "warnings": "; ".join(lines)})
    return True


def _words(model: noise.Model) -> str:
    return f"{model.name} noise, " + ", ".join(f"{name} {value:.3g}" for name, value in model.parameters.items())


def denoise_all(jobs: list[Job], way: Way, force: bool = False) -> None:
    """Denoise every picture, each by itself; raises InputError at the end that names those that could not be."""
    failed, done, began = [], 0, time.monotonic()
    for number, job in enumerate(jobs, 1):
        print(f"[{number}/{len(jobs)}] {job.input.parent / batch.shown(job.input)}", flush=True)
        start = time.monotonic()
        try:
            new = denoise_one(job, way, force)
        except (InputError, OSError, MemoryError) as error:
            failed.append(batch.shown(job.input))
            print(f"  error: {error or 'out of memory; end other programs, or cut the picture into parts'}", flush=True)
            continue
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{done} pictures are done; the same command goes on from there") from None
        done += new
        left = (time.monotonic() - began) / number * (len(jobs) - number)
        ended = f"written to {job.output} in {time.monotonic() - start:.1f} s" if new else f"done before: {job.output}"
        print(f"  {ended}" + f", {tqdm.format_interval(left)} left" * (number < len(jobs)), flush=True)
    if failed:
        raise InputError(f"{len(failed)} of {len(jobs)} pictures could not be denoised (the reason stands above): {', '.join(failed)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Denoise pictures of your own.")
    parser.add_argument("pictures", nargs="+", type=cli.path, metavar="PICTURE|FOLDER", help="image files, or folders of them")
    parser.add_argument("--out", type=cli.path, metavar="FOLDER", help="for the results (default: beside each, as NAME-denoised)")
    parser.add_argument("--noise", choices=[*estimation.ESTIMATORS, "auto"], help="model of the noise, its parameter to be estimated")
    estimation.add_arguments(parser)
    parser.add_argument("--clipped", choices=("auto", "yes", "no"), default="auto", help="were values cut off at black and white?")
    parser.add_argument("--weights", type=cli.path, metavar="FILE", help="your own (default: the shipped ones for every noise)")
    parser.add_argument("--force", action="store_true", help="replace results that exist")
    parser.add_argument("--memory", type=cli.positive, default=denoiser.MEMORY, metavar="GB", help="larger is faster on large pictures")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args()


def main() -> None:
    options = _options()
    given = estimation.told(options)
    if options.sigma is not None and options.sigma < 1:
        print(f"warning: sigma is on the 0-255 scale: {options.sigma:g} is hardly any noise; of the [0, 1] scale give 255 times that")
    clipped = {"auto": None, "yes": True, "no": False}[options.clipped]
    device = machine.require_device(options.device)
    way = Way(given, options.noise or "gaussian", clipped, options.weights, options.memory, device)
    if way.weights:
        weights.load_weights(way.weights)
    files, left_out = batch.pictures_of(options.pictures)
    jobs = batch.plan(files, options.out)
    for reason, count in left_out.items():
        print(f"left out: {count} {reason}")
    denoise_all(jobs, way, options.force)
