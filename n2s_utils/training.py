"""One training loop for every objective: python -m n2s_utils.training CONFIG [KEY=VALUE ...] [--out FOLDER]

CONFIG is a TOML file with the fields of `Config`; KEY=VALUE replaces a field. The run lives in
FOLDER/NAME (default build/runs/NAME): its checkpoint, and at the end NAME.safetensors, NAME.json and
NAME.csv. Run the same command again after an interruption and it resumes to the same weights.

Needs only torch, numpy, pillow, safetensors and tqdm.
"""

import argparse
import copy
import csv
import dataclasses
import hashlib
import io
import math
import platform
import signal
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from n2s_utils import cli, noise, objectives
from n2s_utils.cli import InputError
from n2s_utils.datasets import Crops, cut_once, image_set, load, noisy_pictures
from n2s_utils.files import ROOT, atomic_write
from n2s_utils.unet import STRIDE, UNet, require_device
from n2s_utils.weights import load_record, load_weights, save_weights

HELD_OUT_PIXELS = 64 * 64**2


@dataclass(frozen=True)
class Config:
    """What a run is. Give its length as `crops` or as `minutes`, not both."""

    name: str
    objective: str  # one of objectives.OBJECTIVES
    s_max: float = 0.0  # largest and smallest s_a, on the [0, 1] scale; objectives without s_a leave them out
    s_min: float = 0.0
    cycle: int = objectives.ARDAE.cycle  # crops until s_a restarts; of ar-dae only
    draws: int = 1  # of u per crop
    dataset: str = "CBSD400"
    held_out: str = "CBSD32"  # noisy pictures for the held-out loss
    noise: str = "gaussian"
    parameter: float = 25.0
    noise_seed: int = 0
    second_seed: int = 0  # of the second realization, for noise2noise; another than noise_seed
    fresh_noise: bool = False  # supervised and noise2noise only: new noise at every step, not one realization per picture
    crop: int = 64  # pixels, a multiple of 32
    batch: int = 8
    crops: int = 0  # crops to see
    minutes: float = 0.0  # or time to take; becomes a number of crops once the speed is known
    learning_rate: float = 8e-4
    schedule: str = "cosine"  # to zero; or step: a tenth after half of the crops; or constant
    warmup: int = 100  # steps of linear learning-rate warm-up, in which the speed is measured
    ema: float = 0.999
    clip: float = 1.0  # largest gradient norm
    keep_every: int = 1  # train on every so-many-th picture of the set
    cut_once: int = 0  # keep one square of this side of each picture; 0: all of it
    slipped_flips: bool = False  # see datasets.Crops
    clip_noisy: bool = False  # clamp the noisy training pictures to [0, 1]
    shared_blocks: bool = False  # of the network, see unet.UNet
    output_scale: float = 10.0
    relu_output: bool = False
    kink_width: float = 0.0  # that of unet.RoundedLeakyReLU; 0: leaky ReLU
    start: str = ""  # weights file in the repository to start from, a Gaussian one rescaled to the noise level; empty: fresh weights
    seed: int = 0
    device: str = "cpu"
    precision: str = "bf16"  # autocast; or fp32
    compile: bool = False
    every: int = 250  # steps between checkpoints and rows of the metrics

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is float and type(value) is int:
                object.__setattr__(self, field.name, float(value))
            elif type(value) is not field.type:
                raise InputError(f"{field.name} = {value!r}: give a value of type {field.type.__name__}")
        for field in ("crop", "batch", "cycle", "draws", "keep_every", "learning_rate", "warmup", "clip", "output_scale", "every"):
            if not 0 < getattr(self, field) < math.inf:
                raise InputError(f"{field} = {getattr(self, field)}: give a number above 0")
        if Path(self.name).name != self.name or self.name in ("", ".."):
            raise InputError(f"name = {self.name!r}: give a file name without folders")
        for field in ("seed", "noise_seed", "second_seed"):
            if getattr(self, field) < 0:
                raise InputError(f"{field} = {getattr(self, field)}: give a whole number from 0")
        if not math.isfinite(self.minutes) or (self.crops > 0) == (self.minutes > 0) or min(self.crops, self.minutes) < 0:
            raise InputError(f"crops = {self.crops}, minutes = {self.minutes}: give one of them above 0")
        if self.crop % STRIDE:
            raise InputError(f"crop = {self.crop}: give a multiple of {STRIDE}")
        if self.cut_once and self.cut_once < self.crop:
            raise InputError(f"cut_once = {self.cut_once}: give the side of the crop, {self.crop}, or more")
        if not 0 <= self.kink_width < math.inf:
            raise InputError(f"kink_width = {self.kink_width}: give a number from 0")
        if not 0 <= self.ema < 1:
            raise InputError(f"ema = {self.ema}: give a number in [0, 1)")
        for field, known in (("schedule", ("cosine", "step", "constant")), ("precision", ("bf16", "fp32")), ("device", ("cpu", "cuda"))):
            if getattr(self, field) not in known:
                raise InputError(f"{field} = {getattr(self, field)!r}: choose one of {', '.join(known)}")
        if self.objective == "noise2noise" and self.second_seed == self.noise_seed:
            raise InputError(f"second_seed = {self.second_seed}: noise2noise needs a second realization; give another than noise_seed")
        require_device(self.device)


def read_config(path: str | Path, changes: dict | None = None) -> Config:
    """The configuration in a TOML file, with `changes` to its fields; raises InputError naming a bad field."""
    try:
        values = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"{path}: no readable configuration file ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML ({error})") from None
    changes = changes or {}
    # A length given on the command line replaces the file's, in whichever unit that was.
    for given, other in (("crops", "minutes"), ("minutes", "crops")):
        if given in changes:
            values.pop(other, None)
    values |= changes
    fields = {field.name: field for field in dataclasses.fields(Config)}
    for name in values.keys() - fields.keys():
        raise InputError(f"{path}: unknown field {name!r}; known: {', '.join(fields)}")
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in values:
            raise InputError(f"{path}: field {name!r} is missing")
    return Config(**values)


def train(config: Config, folder: str | Path = ROOT / "build" / "runs") -> Path:
    """Train as configured in `folder`/NAME, resuming what is there; returns the path of the weights.

    Ctrl-C and SIGTERM save a checkpoint and raise KeyboardInterrupt. Raises InputError for bad data,
    a foreign or corrupt checkpoint, and a loss that is not finite (the last good checkpoint stays).
    """
    folder = Path(folder) / config.name
    run = _Run(config, folder / "checkpoint.pt")
    with _stop_on_signal() as stopped:

        def advance(until: int) -> None:
            for _ in cli.progress(run.steps(until), until, config.name, done=run.step):
                if stopped():
                    run.save()
                    raise KeyboardInterrupt(f"{config.name}: saved at step {run.step}; the same command goes on from there")

        if run.total is None:
            run.set_budget(advance)
        advance(run.total)
    weights = folder / f"{config.name}.safetensors"
    run.write_metrics(weights.with_suffix(".csv"))
    save_weights(run.ema.state_dict(), weights, run.record())
    return weights


class _Run:
    """The state of a training run and its steps."""

    def __init__(self, config: Config, checkpoint: Path):
        self.config, self.checkpoint = config, checkpoint
        self.noise = noise.make(config.noise, config.parameter)
        std = self.noise.std if config.noise == "gaussian" else math.nan
        self.objective = objectives.make(config.objective, config.s_max, config.s_min, std, config.cycle)
        if config.fresh_noise and self.objective.needs == "noisy":
            raise InputError(f"fresh_noise = true: {config.objective} learns from one noisy realization; leave it out")
        channels = image_set(config.dataset).channels
        if image_set(config.held_out).channels != channels:
            raise InputError(f"held_out = {config.held_out!r}: not the channels of {config.dataset!r}")
        self.data, self.targets = self._load_set(config.dataset)
        held_out = self._load_set(config.held_out, held_out=True)
        self.held_out = self._draw(*held_out, max(HELD_OUT_PIXELS // config.crop**2, 1), np.random.default_rng(0), None)

        torch.manual_seed(config.seed)
        self.model, self.ema = (
            UNet(channels, config.shared_blocks, config.output_scale, config.relu_output, config.kink_width).to(
                config.device, memory_format=torch.channels_last
            )
            for _ in range(2)
        )
        if config.start:
            start = load_weights(ROOT / config.start, channels)
            if (start.output_scale, start.relu_output) != (config.output_scale, config.relu_output):
                raise InputError(f"start = {config.start!r}: trained with another output_scale or relu_output; give those of its record")
            first = noise.make(*(load_record(ROOT / config.start)["config"][key] for key in ("noise", "parameter")))
            if first.name == self.noise.name == "gaussian":
                start.rescale(first.std / self.noise.std)
            self.model.load_state_dict(start.state_dict())
        self.ema.requires_grad_(False).load_state_dict(self.model.state_dict())
        self.forward = torch.compile(self.model) if config.compile else self.model
        self.optimizer = torch.optim.Adam(self.model.parameters(), config.learning_rate)
        self.step, self.seconds, self.rows = 0, 0.0, []
        self.total = math.ceil(config.crops / config.batch) if config.crops else None
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=config.device)
        if checkpoint.exists():
            self._load()

    def steps(self, until: int) -> Iterator[None]:
        """Take the steps up to number `until`, one by one; checkpoint and log on the way."""
        self.clock = time.monotonic() - self.seconds
        while self.step < until:
            self._take_step()
            self.seconds = time.monotonic() - self.clock
            if self.step % self.config.every == 0 or self.step == self.total:
                self._log()
                self.save()
            yield

    def set_budget(self, advance: Callable[[int], None]) -> None:
        """Turn the time limit into a number of steps: the warm-up does not depend on it, and shows the speed."""
        warmup = self.config.warmup
        advance(warmup // 2)
        self.loss_sum.item()  # waits for the device
        begin, first = self.seconds, self.step
        advance(max(warmup, first + 10))
        self.loss_sum.item()
        per_step = (self.seconds - begin) / (self.step - first)
        self.total = self.step + max(int((self.config.minutes * 60 - self.seconds) / per_step), 1)
        print(f"{self.config.name}: {self.config.minutes:g} minutes allow {self.total * self.config.batch} crops", flush=True)

    def _take_step(self) -> None:
        config = self.config
        # Each step's random numbers come from (seed, step), so a resume needs no other state.
        rng = np.random.default_rng([config.seed, self.step])
        batch = self._draw(self.data, self.targets, config.batch, rng, self.step * config.batch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        loss = self._loss(self.forward, batch)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        self.step += 1
        self.loss_sum += loss.detach() + 0 * norm  # a gradient that is not finite shows as well
        self.last_s_a = batch[2] if self.objective.needs == "noisy" else None
        # Early steps count less, or the random start would linger in the average.
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)

    def _load_set(self, dataset: str, held_out: bool = False) -> tuple[Crops, Crops | None]:
        """The noisy pictures of a set and, only for an objective that needs it, what it compares them with."""
        config, needs = self.config, self.objective.needs
        noisy = noisy_pictures(dataset, self.noise, config.noise_seed)
        if config.clip_noisy and not held_out:
            noisy = {name: y.clip(0, 1) for name, y in noisy.items()}
        if needs == "noisy":
            return self._crops(noisy, held_out), None
        if needs == "clean" or (config.fresh_noise and not held_out):
            targets = dict(load(dataset))
        else:
            targets = noisy_pictures(dataset, self.noise, config.second_seed)
        return self._crops(noisy, held_out), self._crops(targets, held_out)

    def _crops(self, pictures: dict[str, np.ndarray], held_out: bool) -> Crops:
        config = self.config
        if held_out:
            return Crops(pictures, config.crop, config.device)
        pictures = dict(islice(pictures.items(), 0, None, config.keep_every))
        if config.cut_once:
            pictures = cut_once(pictures, config.cut_once)
        return Crops(pictures, config.crop, config.device, config.slipped_flips)

    def _draw(self, data: Crops, targets: Crops | None, size: int, rng: np.random.Generator, crops_seen: int | None):
        """What the loss takes after the model: (y, u, s_a) or (y, target). `crops_seen` is None for held-out crops."""
        config, objective = self.config, self.objective
        same_places = copy.deepcopy(rng)
        y = data.batch(size, rng)
        if targets is not None:
            target = targets.batch(size, same_places)
            if not config.fresh_noise or crops_seen is None:
                return y, target
            return self._fresh(target, rng), target if objective.needs == "clean" else self._fresh(target, rng)
        y = y.repeat(config.draws, 1, 1, 1)
        u = objective.probe(y, torch.Generator(y.device).manual_seed(int(rng.integers(2**63))))
        if crops_seen is None:
            levels = np.geomspace(config.s_min, config.s_max, size)
        else:
            levels = objective.noise_levels(crops_seen, size, rng)
        s_a = torch.from_numpy(levels).float().view(-1, 1, 1, 1).to(config.device)
        return y, u, s_a.repeat(config.draws, 1, 1, 1)

    def _fresh(self, clean: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        noisy = torch.from_numpy(self.noise.sample(clean.cpu().numpy(), rng))
        return noisy.to(clean.device, memory_format=torch.channels_last)

    def _loss(self, model, batch) -> torch.Tensor:
        with torch.autocast(self.config.device, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return self.objective.loss(model, *batch)

    def learning_rate(self) -> float:
        """Of the step to come: linear warm-up, then cosine to zero, one step to a tenth, or constant."""
        base, warmup = self.config.learning_rate, self.config.warmup
        if self.step < warmup or self.total is None or self.config.schedule == "constant":
            return base * min((self.step + 1) / warmup, 1)
        position = (self.step - warmup) / max(self.total - warmup, 1)
        if self.config.schedule == "step":
            return base if position < 0.5 else base / 10
        return base * (1 + math.cos(math.pi * position)) / 2

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The objective of the EMA weights on fixed crops of noisy pictures not trained on."""
        return self._loss(self.ema, self.held_out).item()

    @torch.no_grad()
    def estimated_psnr(self) -> float | str:
        """The PSNR in dB that SURE expects of the EMA weights on the held-out noisy crops; "" for other noise than Gaussian.

        In float32, and the same estimate for every objective, so it compares them without a clean image.
        """
        if self.config.noise != "gaussian":
            return ""
        y = self.held_out[0][: len(self.held_out[0]) // self.config.draws]
        return -10 * math.log10(max(objectives.sure(self.ema, y, self.noise.std, torch.Generator(y.device).manual_seed(0)), 1e-9))

    def _log(self) -> None:
        self._check_finite()
        loss = self.loss_sum.item() / (self.step - (self.rows[-1]["step"] if self.rows else 0))
        self.loss_sum.zero_()
        self.rows.append(
            {
                "step": self.step,
                "crops": self.step * self.config.batch,
                "seconds": round(self.seconds, 1),
                "learning_rate": self.learning_rate(),
                "s_a": "" if self.last_s_a is None else self.last_s_a.mean().item(),  # over the crops of this step
                "loss": loss,
                "held_out_loss": self.held_out_loss(),
                "estimated_psnr": self.estimated_psnr(),
            }
        )
        self.write_metrics(self.checkpoint.with_name("metrics.csv"))

    def _check_finite(self) -> None:
        if not math.isfinite(self.loss_sum.item()):
            raise InputError(
                f"{self.config.name}: the loss or its gradient is no finite number before step {self.step}; "
                f"{self.checkpoint} keeps the last good state if one was saved; try a lower learning_rate or clip under another name"
            )

    def write_metrics(self, path: Path) -> None:
        with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self.rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)

    def save(self) -> None:
        """Checkpoint all that the remaining steps depend on; raises InputError instead of keeping a state that is not finite."""
        self._check_finite()
        state = {
            "config": dataclasses.asdict(self.config),
            "data_sha256": self.data.sha256,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss_sum": self.loss_sum,
            "step": self.step,
            "total": self.total,
            "seconds": self.seconds,
            "rows": self.rows,
        }
        buffer = io.BytesIO()  # torch's own writer hides a full disk behind a RuntimeError
        torch.save(state, buffer)
        content = buffer.getvalue()
        with atomic_write(self.checkpoint) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)

    def _load(self) -> None:
        path = self.checkpoint
        stored = path.read_bytes()
        digest, content = stored[:32], stored[32:]
        if hashlib.sha256(content).digest() != digest:
            raise InputError(f"{path}: corrupt or not a checkpoint of ours; remove it to start anew")
        state = torch.load(io.BytesIO(content), self.config.device, weights_only=True)
        saved = state["config"]
        mine = dataclasses.asdict(self.config)
        other = sorted(key for key in mine.keys() | saved.keys() if mine.get(key) != saved.get(key))
        if other or state["data_sha256"] != self.data.sha256:
            raise InputError(f"{path}: from another run (differs in {', '.join(other) or 'data'}); remove it or choose another --out")
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss_sum = state["loss_sum"]
        self.step, self.total, self.seconds, self.rows = (state[key] for key in ("step", "total", "seconds", "rows"))

    def record(self) -> dict:
        """What the weights saw."""
        start = {}
        if self.config.start:
            first = load_record(ROOT / self.config.start)
            stage = {"crop": first["config"]["crop"], "crops": first["crops"], "minutes": first["minutes"]}
            start = {"start_sha256": first["sha256"], "before": [*first.get("before", []), stage]}
        return {
            "config": dataclasses.asdict(self.config),
            **start,
            "crops": self.step * self.config.batch,
            "steps": self.step,
            "device": device_name(self.config.device),
            "minutes": round(self.seconds / 60, 1),
            "crops_per_second": round(self.step * self.config.batch / self.seconds, 1),
            "data_sha256": self.data.sha256,
            "held_out_loss": self.rows[-1]["held_out_loss"],
            "torch": torch.__version__,
        }


def device_name(device: str) -> str:
    """The processor that `device` (cpu or cuda) is on this machine, in words."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{[*models, platform.processor() or platform.machine()][0]}, {torch.get_num_threads()} threads"


@contextmanager
def _stop_on_signal():
    """Turn Ctrl-C and SIGTERM into a flag, read between steps, so that a checkpoint is never of half a step."""
    hits = []
    before = {which: signal.signal(which, lambda *_: hits.append(1)) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(hits)
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _parse_change(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"{text!r}: give a change as KEY=VALUE")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value  # a bare word is a string


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a score network.")
    parser.add_argument("config", help="TOML file")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="replace a field, e.g. device=cuda minutes=9")
    parser.add_argument("--out", default=ROOT / "build" / "runs", help="folder of the runs (default build/runs)")
    arguments = parser.parse_intermixed_args()
    config = read_config(arguments.config, dict(map(_parse_change, arguments.changes)))
    print(train(config, arguments.out))


if __name__ == "__main__":
    cli.run(main)
