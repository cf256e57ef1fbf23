"""How the weights move: the learning rate, the steps of Adam, and their exponential moving average (EMA)."""

import copy
import math
from dataclasses import dataclass

import torch

from n2s_utils.cli import InputError
from n2s_utils.network import ScoreNetwork

SCHEDULES = ("cosine", "step", "constant")


@dataclass(frozen=True)
class Optimisation:
    """The table [optimisation] of a configuration. Give the length as `crops` or as `minutes`, not both."""

    crop: int = 64  # pixels, a multiple of the network's stride
    batch: int = 8
    crops: int = 0  # crops to see
    minutes: float = 0.0  # or time to take; becomes a number of crops once the speed is known
    learning_rate: float = 8e-4
    schedule: str = "cosine"  # to zero; or step: a tenth after half of the crops; or constant
    warmup: int = 100  # steps of linear learning-rate warm-up, in which the speed is measured
    ema: float = 0.999
    clip: float = 1.0  # largest gradient norm
    seed: int = 0

    def __post_init__(self):
        for field in ("crop", "batch", "learning_rate", "warmup", "clip"):
            if not 0 < getattr(self, field) < math.inf:
                raise InputError(f"{field} = {getattr(self, field)}: give a number above 0")
        if not math.isfinite(self.minutes) or (self.crops > 0) == (self.minutes > 0) or min(self.crops, self.minutes) < 0:
            raise InputError(f"crops = {self.crops}, minutes = {self.minutes}: give one of them above 0")
        if not 0 <= self.ema < 1:
            raise InputError(f"ema = {self.ema}: give a number in [0, 1)")
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule = {self.schedule!r}: choose one of {', '.join(SCHEDULES)}")
        if self.seed < 0:
            raise InputError(f"seed = {self.seed}: give a whole number from 0")

    def rate(self, step: int, total: int | None) -> float:
        """The learning rate of a step: linear warm-up, then by the schedule, `total` steps long (None: not known yet)."""
        if step < self.warmup or total is None or self.schedule == "constant":
            return self.learning_rate * min((step + 1) / self.warmup, 1)
        position = (step - self.warmup) / max(total - self.warmup, 1)
        if self.schedule == "step":
            return self.learning_rate if position < 0.5 else self.learning_rate / 10
        return self.learning_rate * (1 + math.cos(math.pi * position)) / 2


class Optimizer:
    """Adam on the weights of `model`, and `ema`, the average of them that is shipped."""

    def __init__(self, model: ScoreNetwork, settings: Optimisation):
        self.model, self.settings = model, settings
        self.ema = copy.deepcopy(model).requires_grad_(False)
        self.adam = torch.optim.Adam(model.parameters(), settings.learning_rate)

    def step(self, loss: torch.Tensor, number: int, total: int | None) -> torch.Tensor:
        """Take step `number` down the gradient of the loss; the gradient's norm."""
        for group in self.adam.param_groups:
            group["lr"] = self.settings.rate(number, total)
        self.adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.adam.step()
        # Early steps count less, or the random start would linger in the average.
        decay = min(self.settings.ema, (2 + number) / (11 + number))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)
        return norm

    def state_dict(self) -> dict:
        return {"model": self.model.network.state_dict(), "ema": self.ema.network.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.model.network.load_state_dict(state["model"])
        self.ema.network.load_state_dict(state["ema"])
        self.adam.load_state_dict(state["adam"])
