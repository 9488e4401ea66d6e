from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import (
    T,
    guided_parts,
    spy_model,
    stir,
    tiny_clip,
    tiny_module,
)
from torch import Tensor

from diffusion_lab import (
    ColourGuidance,
    ImageTextGuidance,
    InputError,
    LossGuidance,
    Pipeline,
    PixelSpace,
    load,
)

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


class Reported(LossGuidance):
    """|x - 1|^2 / 2, which keeps what it saw."""

    def loss(self, images: Tensor) -> Tensor:
        self.seen = images
        return (images - 1).square().flatten(1).sum(1) / 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_loss_guidance_is_its_formula_and_keeps_nothing_of_the_network(mode: Callable[[], Any]) -> None:
    guided, cond, _, _, x_t = guided_parts(1.0)
    guidance = Reported(0.6)
    with mode():
        estimate = guidance.wrap(guided, spy_model(PixelSpace([4, 5, 5], 0.5)), {})(x_t, T)
        alpha, sigma = guided.schedule.at(T)[:2]
        # Decoded images are half of x0, and so is the gradient of x0.
        expected = cond.x0 - 0.6 * sigma**2 / (alpha**2 + sigma**2) * 0.5 * (0.5 * cond.x0 - 1)
        torch.testing.assert_close(estimate.x0, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alpha * estimate.x0 + sigma * estimate.eps, x_t, rtol=1e-5, atol=1e-5)
        assert not estimate.x0.requires_grad
    graph, names = [guidance.seen.grad_fn], set()
    while graph:
        node = graph.pop()
        if node is not None:
            names.add(type(node).__name__)
            graph += [below for below, _ in node.next_functions]
    assert names == {"MulBackward0", "AccumulateGrad"}  # the decoder's one operation on x0, and no network


def test_a_weight_of_zero_is_no_loss_guidance() -> None:
    guided, *_ = guided_parts(1.0)
    assert Reported(0.0).wrap(guided, spy_model(), {}) is guided


class Mean(LossGuidance):
    def loss(self, images: Tensor) -> Tensor:
        return images.mean()


class Constant(LossGuidance):
    def loss(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images))


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (Mean(), r"Mean.loss must give a differentiable number for each of 3 images: got \[\]"),
        (Constant(), r"Constant.loss must .* got \[3\], which depends on no image"),
    ],
)
def test_a_loss_that_is_not_one_number_an_image_is_refused(guidance: LossGuidance, message: str) -> None:
    guided, _, _, _, x_t = guided_parts(1.0)
    with torch.no_grad(), pytest.raises(InputError, match=message):
        guidance.wrap(guided, spy_model(), {})(x_t, T)


def test_colour_guidance_moves_the_mean_colour_wholly_at_pure_noise() -> None:
    target = (255.0, 0.0, 51.0)
    guidance = ColourGuidance(target, 1.0)
    images = (torch.rand(2, 3, 4, 4) * 2 - 1).requires_grad_()
    (gradient,) = torch.autograd.grad(guidance.loss(images).sum(), images)
    mean = (images - gradient).mean((2, 3))
    torch.testing.assert_close(mean, torch.tensor([[1.0, -1.0, -0.6]] * 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_image_text_guidance_draws_images_to_the_text(channels: int, tmp_path: Path) -> None:
    tiny_clip(tmp_path / "clip")
    module = tiny_module(conditions={}) if channels == 1 else rgb_module()
    pipe = Pipeline(module)
    guidance = {weight: ImageTextGuidance("a cat", str(tmp_path / "clip"), weight) for weight in (0.0, 30.0, 300.0)}
    judge = guidance[300.0]
    losses = []
    for each in guidance.values():
        images = pipe(8, steps=5, guidance=each)
        assert isinstance(images, Tensor)
        with torch.no_grad():
            losses.append(float(judge.loss(images / 127.5 - 1).mean()))
    assert losses[0] > losses[1] > losses[2]
    by_name = pipe(2, steps=2, guidance=f"image_text(text='a cat', clip={str(tmp_path / 'clip')!r}, weight=30)")
    assert torch.equal(by_name, pipe(2, steps=2, guidance=guidance[30.0]))  # type: ignore[arg-type]


def rgb_module() -> Any:
    from diffusion_lab import UNet

    torch.manual_seed(0)
    network = UNet(3, width=8, multipliers=(1, 2), blocks=1, channels_per_head=8, embed_dim=16)
    stir(network)
    return tiny_module(network=network, conditions={}, space=PixelSpace([3, 8, 8]))


def test_similarity_is_the_models_own_on_images_of_its_size(tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    tiny_clip(tmp_path / "clip")
    clip, tokens = CLIPModel.from_pretrained(tmp_path / "clip"), CLIPTokenizer.from_pretrained(tmp_path / "clip")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    normal = ((images + 1) / 2 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(
        3, 1, 1
    )
    with torch.no_grad():
        theirs = clip.eval()(**tokens("a cat", return_tensors="pt"), pixel_values=normal)
        ours = ImageTextGuidance("a cat", str(tmp_path / "clip")).loss(images)
    torch.testing.assert_close(1 - ours, theirs.logits_per_image[:, 0] / clip.logit_scale.exp(), rtol=1e-5, atol=1e-5)


def test_an_image_text_model_that_is_none_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertConfig, BertModel

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipe = Pipeline(tiny_module(conditions={}))
    with pytest.raises(InputError, match="no image-text model at .*nowhere .*: give a folder or a model id") as caught:
        pipe(1, guidance=ImageTextGuidance("a cat", str(tmp_path / "nowhere")))
    assert "\n" not in str(caught.value)
    tiny_clip(tmp_path / "bert")
    BertModel(
        BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="is a BertModel, which is no CLIP .*: give one"):
        pipe(1, guidance=ImageTextGuidance("a cat", str(tmp_path / "bert")))


def test_colour_guidance_moves_photographs_to_the_colour_by_its_weight() -> None:
    pipe, target = load(CHECKPOINTS / "photographs"), torch.tensor([200.0, 60.0, 40.0])
    distances = []
    for weight in (0.0, 0.1, 0.3, 0.6, 1.0):
        images = pipe(12, steps=10, guidance=ColourGuidance(target.tolist(), weight), progress=False)
        assert isinstance(images, Tensor)
        distances.append((images.float().mean((2, 3)) - target).norm(dim=1))
    for further, nearer in pairwise(distances):
        assert float(nearer.mean()) < float(further.mean())
    assert float(distances[-1].mean()) < 0.3 * float(distances[0].mean())
