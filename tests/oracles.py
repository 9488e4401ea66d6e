"""What the tests compare with: denoisers that know the answer, and small models with nothing trained in them."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from diffusion_lab import (
    ClassConditional,
    ClassLabel,
    Conditions,
    Configurable,
    CosineSchedule,
    Denoiser,
    Density,
    DiffusionModule,
    Digits,
    FlowSchedule,
    Guided,
    InputError,
    KarrasSchedule,
    PixelSpace,
    Prediction,
    TableSchedule,
    UNet,
)
from diffusion_lab.conditions import Cond
from diffusion_lab.guidance import Model
from diffusion_lab.metrics import Score
from diffusion_lab.predictions import Estimate
from diffusion_lab.schedules import NoiseSchedule

# One of each family, by name.
SCHEDULES: dict[str, NoiseSchedule] = {
    "linear": TableSchedule("linear"),
    "cosine_table": TableSchedule("squaredcos_cap_v2"),
    "zero_snr": TableSchedule("linear", zero_terminal_snr=True),
    "cosine": CosineSchedule(),
    "cosine_shifted": CosineSchedule(0.25, None, None),
    "karras": KarrasSchedule(),
    "flow": FlowSchedule(),
    "flow_shifted": FlowSchedule(3.0),
}


def _fits(prediction: Prediction, schedule: NoiseSchedule) -> bool:
    try:
        prediction.check(schedule)
    except InputError:
        return False
    return True


# Every prediction with every schedule on which it can be trained.
PAIRS = {f"{p.name}-{name}": (p, s) for p in Prediction for name, s in SCHEDULES.items() if _fits(p, s)}
pairs = pytest.mark.parametrize(("prediction", "schedule"), PAIRS.values(), ids=PAIRS)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


class Oracle:
    """Knows x0: its estimate is exact at every x_t."""

    def __init__(self, schedule: NoiseSchedule, x0: Tensor) -> None:
        self.schedule, self.x0 = schedule, x0

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = self.schedule(t)
        return Estimate(self.x0, (x_t - alpha * self.x0) / sigma)


class GaussianOracle:
    """The exact posterior mean for data from N(mean, deviation^2).

    E[x0 | x_t] = mean + alpha d^2 / (alpha^2 d^2 + sigma^2) (x_t - alpha mean).
    """

    def __init__(self, schedule: NoiseSchedule, mean: float, deviation: float) -> None:
        self.schedule, self.mean, self.deviation = schedule, mean, deviation

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = self.schedule(t)
        gain = alpha * self.deviation**2 / (alpha**2 * self.deviation**2 + sigma**2)
        x0 = self.mean + gain * (x_t - alpha * self.mean)
        return Estimate(x0, (x_t - alpha * x0) / sigma)


class GivenTimes(Density):
    """The times that it was given, and weights of its own."""

    def __init__(self, t: Tensor) -> None:
        super().__init__()
        self.t, self.seen = t, list[tuple[Tensor, Tensor]]()

    def forward(self, schedule: object, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.t, torch.arange(1, batch_size + 1, dtype=self.t.dtype)

    def draw(self, schedule: object, batch_size: int, generator: torch.Generator) -> Tensor:
        return self.t

    def pdf(self, schedule: object, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def update(self, t: Tensor, loss: Tensor) -> None:
        self.seen.append((t, loss))


class SpyNetwork(Configurable, nn.Module):
    """A network of one weight whose output differs in every channel and with its condition, and that counts."""

    embed_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.batches: list[int] = []
        self.conds: list[Cond] = []
        self.times: list[float] = []

    def forward(self, x_t: Tensor, network_time: Tensor, cond: Cond) -> Tensor:
        self.batches.append(len(x_t))
        self.conds.append(cond)
        self.times.append(float(network_time[0]))
        channel = torch.arange(1, x_t.shape[1] + 1, dtype=x_t.dtype, device=x_t.device)[:, None, None]
        shift = 0 if cond.embed is None else cond.embed.sum(1)[:, None, None, None]
        return self.weight * x_t * channel + shift * channel + network_time[:, None, None, None] / 1000


def spy_parts(channels: int = 4, prediction: str = "V") -> tuple[Denoiser, Conditions]:
    """A spy's denoiser and conditions with three classes."""
    torch.manual_seed(0)
    conditions = Conditions({"labels": ClassLabel(3, SpyNetwork.embed_dim)})
    nn.init.normal_(conditions.conditioners["labels"].rows.weight)  # type: ignore[arg-type, union-attr]
    return Denoiser(SpyNetwork(), TableSchedule("linear"), prediction), conditions


def stir(network: nn.Module) -> None:
    """Fill the layers that start at zero, through which neither time nor condition would be seen."""
    for weight in network.parameters():
        if weight.ndim > 1 and not bool(weight.any()):
            nn.init.normal_(weight, std=0.1)


def tiny_module(**options: object) -> DiffusionModule:
    """A class-conditional model of digits that trains in milliseconds a step, none of its layers zero any longer."""
    torch.manual_seed(0)
    network = UNet(1, width=8, multipliers=(1, 2), blocks=1, channels_per_head=8, embed_dim=16)
    stir(network)
    labels = ClassLabel(10, 16)
    nn.init.normal_(labels.rows.weight)
    arguments = {
        "network": network,
        "schedule": TableSchedule(),
        "space": PixelSpace([1, 8, 8]),
        "conditions": {"labels": labels},
        **options,
    }
    return DiffusionModule(**arguments)  # type: ignore[arg-type]


def validate(
    tmp_path: Path, callback: Callback, module: DiffusionModule | None = None, **options: Any
) -> tuple[Trainer, Any, ClassConditional]:
    """One validation of a tiny model, whose raw weights are others than the averaged ones, with a callback."""
    module, data = module or tiny_module(), ClassConditional(Digits(), batch_size=64)
    with torch.no_grad():
        module.denoiser.network.leave[2].weight.mul_(0.5)  # type: ignore[union-attr, index, operator]
    defaults: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = Trainer(**{**defaults, **options}, default_root_dir=tmp_path, callbacks=[callback])
    trainer.validate(module, data, verbose=False)
    return trainer, module, data


# ------------------------------------------------------------------------------------------------ for guidance

LABELS = {"labels": torch.tensor([0, 1, 2])}
KEEP, DROP = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
T = torch.tensor(0.4, dtype=torch.float64)


def guided_parts(scale: float, prediction: str = "V") -> tuple[Guided, Estimate, Estimate, SpyNetwork, Tensor]:
    """Guided, conditional and unconditional estimates at one x_t, the network that was asked, and x_t."""
    denoiser, conditions = spy_parts(prediction=prediction)
    x_t = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        cond, null = conditions(LABELS, KEEP), conditions(LABELS, DROP)
        kept, dropped = denoiser(x_t, T, cond), denoiser(x_t, T, null)
    spy = denoiser.network
    assert isinstance(spy, SpyNetwork)
    spy.batches.clear()
    return Guided(denoiser, cond, null, scale), kept, dropped, spy, x_t


def spy_model(space: PixelSpace | None = None) -> Model:
    """A spy's model of four channels."""
    denoiser, conditions = spy_parts()
    return Model(denoiser, conditions, space or PixelSpace([4, 5, 5]))


def two_conditions(independent: bool = True) -> tuple[Denoiser, Conditions]:
    """A spy's denoiser and conditions, with a style beside the label."""
    denoiser, one = spy_parts()
    torch.manual_seed(1)
    style = ClassLabel(5, SpyNetwork.embed_dim)
    nn.init.normal_(style.rows.weight)
    label = one.conditioners["labels"]
    return denoiser, Conditions({"labels": label, "style": style}, independent_drop=independent)  # type: ignore[dict-item]


def same_estimate(one: Estimate, other: Estimate) -> bool:
    """To the bit."""
    return torch.equal(one.x0, other.x0) and torch.equal(one.eps, other.eps)


def tiny_clip(folder: Path) -> None:
    """A CLIP of random weights for images of 16 pixels, as transformers' folders have it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

    folder.mkdir()
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=len(words), max_position_embeddings=20, eos_token_id=len(words) - 1, **size)
    vision = CLIPVisionConfig(image_size=16, patch_size=8, **size)
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]).save_pretrained(folder)  # fmt: skip


# ------------------------------------------------------------------------------------------------ for intervals


def check_width(scores: list[Score]) -> None:
    """The 95% intervals of 60 fresh draws are as wide as the draws scatter: 3.92 deviations."""
    assert len(scores) == 60
    assert all(score.low is not None and score.high is not None for score in scores)
    assert all(score.low < score.value < score.high for score in scores)  # type: ignore[operator]  # as just seen
    width = statistics.mean(score.high - score.low for score in scores)  # type: ignore[operator]
    # Four standard errors of the deviation of 60 values are 0.37 of it.
    assert width / 3.92 == pytest.approx(statistics.stdev(score.value for score in scores), rel=0.37)
