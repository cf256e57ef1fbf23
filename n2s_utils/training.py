"""One training loop for every objective: python -m n2s_utils.training CONFIG [TABLE.KEY=VALUE ...] [--out FOLDER]

CONFIG is a TOML file (see config); TABLE.KEY=VALUE replaces a field, in every stage. A run lives in FOLDER/NAME (default
build/runs/NAME): its checkpoint, and at the end NAME.safetensors, NAME.json and NAME.csv. Run the same command again after an
interruption and it resumes to the same weights. On several GPUs, or processes:

    torchrun --nproc-per-node N -m n2s_utils.training CONFIG

Needs only torch (which brings filelock), numpy, pillow, safetensors and tqdm.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from n2s_utils import checkpoint, cli, machine, objectives
from n2s_utils.cli import InputError
from n2s_utils.config import Config, differences, merged, parse_change, read_stages
from n2s_utils.feed import Batch, Feed
from n2s_utils.files import BUILD, ROOT, locked, sha256
from n2s_utils.mixture import Noise
from n2s_utils.network import ScoreNetwork
from n2s_utils.noise import Gaussian
from n2s_utils.optimisation import Optimizer
from n2s_utils.parallel import SINGLE, Group, group_of, leave
from n2s_utils.weights import load_record, load_weights, save_weights

RUNS = BUILD / "runs"


def train(config: Config, folder: str | Path = RUNS, feed: Callable[..., Feed] = Feed, group: Group = SINGLE) -> Path:
    """Train as configured in `folder`/NAME, resuming what is there; returns the path of the weights.

    `feed` is what makes the crops, `group` the processes that share the run. Ctrl-C and SIGTERM save a checkpoint and raise
    KeyboardInterrupt. Raises InputError for bad data, a foreign or corrupt checkpoint, a run that another process has in hand, and
    a loss that is not finite (the last good checkpoint stays).
    """
    weights = Path(folder) / config.name / f"{config.name}.safetensors"
    run = Run(config, weights.with_name("checkpoint.pt"), _start_of(config, Path(folder)), feed, group)
    with locked(weights.parent) if group.first else nullcontext(), cli.stop_on_signal() as stopped:

        def advance(until: int) -> None:
            steps = run.steps(until)
            for _ in cli.progress(steps, until, config.name, done=run.step) if group.first else steps:
                if group.any(stopped()):
                    run.save()
                    raise KeyboardInterrupt(f"{config.name}: saved at step {run.step}; the same command goes on from there")

        if run.total is None:
            run.set_budget(advance)
        assert run.total
        advance(run.total)
        if group.first:
            checkpoint.write_metrics(weights.with_suffix(".csv"), run.rows)
            save_weights(run.optimizer.ema.network.state_dict(), weights, run.record())
    return weights


def train_stages(configs: list[Config], folder: str | Path = RUNS) -> Path:
    """Train the stages of a configuration file in order, on all processes of torchrun; returns the path of the last one's weights."""
    with group_of(configs[0].machine.device) as group:
        for config in configs:
            weights = train(config, folder, group=group)
            group.any(False)  # the next stage begins once its start is written
    return weights


def _start_of(config: Config, folder: Path) -> Path | None:
    """The weights to start from: a file of the repository, or the name of a run in `folder`."""
    if not config.start:
        return None
    named = folder / config.start / f"{config.start}.safetensors"
    path = named if named.exists() else ROOT / config.start
    if not path.is_file():
        raise InputError(f"start = {config.start!r}: no such weights file in the repository, nor a run of that name in {folder}")
    return path


def _stages_before(start: Path) -> list[dict[str, Any]]:
    """What the weights of a start had seen, stage by stage, for the record."""
    first = load_record(start)
    try:
        stage = {"crop": first["config"]["optimisation"]["crop"], "crops": first["crops"], "minutes": first["minutes"]}
    except (KeyError, TypeError) as error:
        raise InputError(f"{start.with_suffix('.json')}: does not say how the weights were trained ({error})") from None
    return [*first.get("before", []), stage]


class Run:
    """The state of a training run and its steps."""

    def __init__(self, config: Config, path: Path, start: Path | None, feed: Callable[..., Feed], group: Group):
        self.config, self.path, self.start, self.group = config, path, start, group
        self.device, settings = config.machine.device, config.optimisation
        self.device_name = machine.device_name(self.device)
        self.objective = objectives.make(config.objective, config.noise, config.network.deviation)
        torch.manual_seed(settings.seed)
        self.part = group.part(settings.batch)
        self.feed = feed(config.data, config.noise, self.objective, settings.crop, config.objective, self.device)
        self.precision = machine.precision_of(config.machine.precision, self.device)
        self.started = {"start_sha256": sha256(start)} if start else {}
        self.before = _stages_before(start) if start else []
        self.step, self.seconds, self.torch = 0, 0.0, str(torch.__version__)
        self.rows: list[dict[str, Any]] = []
        self.devices: list[str] = []  # that took steps
        self.total = math.ceil(settings.crops / settings.batch) if settings.crops else None
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        saved = checkpoint.load(path, self.device) if path.exists() else None
        if saved:
            self._require_same(saved)
        model = machine.placed(self._network(), self.device, self.precision)
        self.optimizer = Optimizer(model, settings)
        if saved:
            self._restore(saved)
        if config.machine.compile:
            model.network.compile()  # alone: what is around it depends on the noise of the batch
        self.forward = group.wrap(model)

    def _network(self) -> ScoreNetwork:
        model = self.config.network.build(self.feed.channels)
        if self.config.optimisation.crop % model.stride:
            raise InputError(f"crop = {self.config.optimisation.crop}: give a multiple of {model.stride}")
        if self.start:
            first = load_weights(self.start, model.channels)
            if as_built := self.config.network.lacks(load_record(self.start)["config"]["network"]):
                raise InputError(f"start = {self.config.start!r}: of another network; give {as_built} in [network]")
            model.start_from(first)
        return model

    def steps(self, until: int) -> Iterator[None]:
        """Take the steps up to number `until`, one by one; checkpoint and log on the way."""
        clock = time.monotonic() - self.seconds
        while self.step < until:
            self._take_step()
            self.seconds = time.monotonic() - clock
            if self.step % self.config.machine.every == 0 or self.step == self.total:
                self._log()
                self.save()
            yield

    def set_budget(self, advance: Callable[[int], None]) -> None:
        """Turn the time limit into a number of steps: the warm-up does not depend on it, and shows the speed."""
        limit, warmup = self.config.optimisation.minutes, self.config.optimisation.warmup
        advance(warmup // 2)
        self.loss_sum.item()  # waits for the device
        begin, first = self.seconds, self.step
        advance(max(warmup, first + 10))
        self.loss_sum.item()
        per_step = (self.seconds - begin) / (self.step - first)
        self.total = self.group.agreed(self.step + max(int((limit * 60 - self.seconds) / per_step), 1))
        if self.group.first:
            print(f"{self.config.name}: {limit:g} minutes allow {self.total * self.config.optimisation.batch} crops", flush=True)

    def _take_step(self) -> None:
        settings = self.config.optimisation
        # Each step's random numbers come from (seed, step), so a resume needs no other state.
        batch = self.feed.batch(settings.seed, self.step, settings.batch, self.part)
        with machine.autocast(self.device, self.precision):
            loss = self.loss(self.forward, batch, self.feed.noise_of(settings.seed, self.step, settings.batch, self.part))
        norm = self.optimizer.step(loss, self.step, self.total)
        if self.device_name not in self.devices:
            self.devices.append(self.device_name)
        self.step += 1
        self.loss_sum += self.group.mean(loss.detach().double()) + 0 * norm  # a gradient that is not finite shows as well
        self.last_s_a = batch[2] if len(batch) > 2 else None

    def loss(self, network: Callable[..., torch.Tensor], batch: Batch, noise: Noise) -> torch.Tensor:
        """The objective, on a batch with its noise, of a network that maps (c, noise) to the score of c."""
        layout, score = machine.memory_format_of(self.device, self.precision), partial(network, noise=noise)
        c, *rest = (values.contiguous(memory_format=layout) for values in batch)
        if isinstance(self.objective, objectives.Regression):
            return self.objective.loss(score, c, rest[0], noise, *rest[1:])
        weight = objectives.unweighted
        if self.objective.weighted:
            weight = partial(self.optimizer.model.weight, noise=noise, power=self.config.objective.weight_power)
        return self.objective.loss(score, c, rest[0], rest[1], weight)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The objective of the EMA weights on fixed crops of noisy pictures not trained on, in float32."""
        return self.loss(self.optimizer.ema, self.feed.held_out, self.feed.held_out_noise).item()

    @torch.no_grad()
    def estimated_psnr(self) -> float | str:
        """The PSNR in dB that SURE expects of the EMA weights on the held-out noisy crops; "" unless all have one Gaussian noise.

        In float32, and the same estimate for every objective, so it compares them without a clean image.
        """
        noise = self.config.noise
        if not isinstance(noise, Gaussian) or self.feed.recorrupts:
            return ""
        c = self.feed.held_out[0][: len(self.feed.held_out[0]) // self.config.objective.draws]
        error = objectives.sure(partial(self.optimizer.ema, noise=noise), c, torch.Generator(c.device).manual_seed(0))
        return -10 * math.log10(max(error * noise.std**2, 1e-9))

    def _log(self) -> None:
        self._check_finite()
        loss = self.loss_sum.item() / (self.step - (self.rows[-1]["step"] if self.rows else 0))
        self.loss_sum.zero_()
        if not self.group.first:
            self.rows.append({"step": self.step})
            return
        self.rows.append(
            {
                "step": self.step,
                "crops": self.step * self.config.optimisation.batch,
                "seconds": round(self.seconds, 1),
                "learning_rate": self.config.optimisation.rate(self.step, self.total),  # of the step to come
                "s_a": "" if self.last_s_a is None else self.last_s_a.mean().item(),  # over the crops of this step
                "loss": loss,
                "held_out_loss": self.held_out_loss(),
                "estimated_psnr": self.estimated_psnr(),
            }
        )
        checkpoint.write_metrics(self.path.with_name("metrics.csv"), self.rows)

    def _check_finite(self) -> None:
        if not math.isfinite(self.loss_sum.item()):
            raise InputError(
                f"{self.config.name}: the loss or its gradient is no finite number before step {self.step}; "
                f"{self.path} keeps the last good state if one was saved; try a lower learning_rate or clip under another name"
            )

    def save(self) -> None:
        """Checkpoint all that the remaining steps depend on; raises InputError instead of keeping a state that is not finite."""
        self._check_finite()
        if not self.group.first:
            return
        kept = ("step", "total", "seconds", "rows", "devices", "torch", "precision", "loss_sum", "started")
        state = {key: getattr(self, key) for key in kept} | self.optimizer.state_dict()
        checkpoint.save(self.path, state | {"config": self.config.tables(), "data_sha256": self.feed.sha256})

    def _require_same(self, saved: dict[str, Any]) -> None:
        """Raises InputError if the checkpoint is of another run; goes on in its precision."""
        other = differences(saved["config"], self.config)
        other += ["data"] * (saved["data_sha256"] != self.feed.sha256) + ["the weights of start"] * (saved["started"] != self.started)
        if other:
            raise InputError(f"{self.path}: from another run (differs in {', '.join(other)}); remove it or choose another --out")
        asked = self.config.machine.precision
        if asked not in ("auto", saved["precision"]):
            raise InputError(f"{self.path}: began in {saved['precision']}, asked for {asked}; leave precision at auto, or begin anew")
        if saved["precision"] != self.precision and self.group.first:
            print(f"{self.config.name}: goes on in {saved['precision']}, as it began; this machine would take {self.precision}", flush=True)
        self.precision = saved["precision"]

    def _restore(self, saved: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(saved)
        self.step, self.total, self.seconds, self.rows = (saved[key] for key in ("step", "total", "seconds", "rows"))
        self.devices, self.torch, self.loss_sum = (saved[key] for key in ("devices", "torch", "loss_sum"))

    def record(self) -> dict[str, Any]:
        """What the weights saw."""
        crops = self.step * self.config.optimisation.batch
        return {
            "config": self.config.tables(),
            "channels": self.feed.channels,
            **self.started,
            **({"before": self.before} if self.before else {}),
            "crops": crops,
            "steps": self.step,
            "device": "; ".join(self.devices),
            "precision": self.precision,
            "minutes": round(self.seconds / 60, 1),
            "crops_per_second": round(crops / self.seconds, 1),
            "data_sha256": self.feed.sha256,
            "held_out_loss": self.rows[-1]["held_out_loss"],
            "torch": self.torch,
        }


def train_configuration(path: str, changes: list[str], folder: str | Path = RUNS) -> None:
    """Train the stages of a configuration file, with changes written TABLE.KEY=VALUE."""
    tables: dict[str, Any] = {}
    for change in changes:
        tables = merged(tables, parse_change(change))
    print(train_stages(read_stages(path, tables), folder))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a score network.")
    parser.add_argument("config", help="TOML file")
    parser.add_argument("changes", nargs="*", metavar="TABLE.KEY=VALUE", help="replace a field, e.g. machine.device=cuda minutes=9")
    parser.add_argument("--out", default=RUNS, help="folder of the runs (default build/runs)")
    arguments = parser.parse_intermixed_args()
    train_configuration(arguments.config, arguments.changes, arguments.out)


if __name__ == "__main__":
    cli.run(main, leave)
