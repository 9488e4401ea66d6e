from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import tiny_clip
from torch import Tensor
from torch.nn import functional as F

from diffusion_lab import ClassConditional, Digits, InputError, Shapes, TextToImage, Unconditional
from diffusion_lab.data.sources import Images, Source
from diffusion_lab.metrics import CLIPScore, RPrecision, ShapesReading, find_metric
from diffusion_lab.metrics.text_alignment import ImageText

CPU = torch.device("cpu")
CAPTIONS = ("a red cat", "two dogs", "the sea", "nothing", "a very long caption with more letters than positions")


class Captioned(Source):
    """Random images of 16 pixels, each caption held out as often as the others."""

    def __init__(self, captions: int = len(CAPTIONS), channels: int = 3) -> None:
        self.captions, self.channels = captions, channels

    def read(self) -> Images:
        pixels = torch.randint(256, (60, self.channels, 16, 16), generator=torch.Generator().manual_seed(1))
        captions = [CAPTIONS[i % self.captions] for i in range(60)]
        return Images(pixels.to(torch.uint8), captions=captions, held_out=torch.arange(60) >= 30)


def captioned(**options: Any) -> TextToImage:
    return TextToImage(Captioned(**options), batch_size=4)


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """A folder with a tiny CLIP."""
    tiny_clip(tmp_path / "clip")
    return str(tmp_path / "clip")


@torch.no_grad()
def cosines(folder: str, images: Tensor, captions: list[str]) -> Tensor:
    """[B, N], by transformers' own forward of images that it need not resize, a caption at a time."""
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    pixels = (images.expand(-1, 3, -1, -1) / 255 - mean) / deviation
    columns = []
    for caption in captions:
        tokens = tokenizer(caption, return_tensors="pt", truncation=True, max_length=20)
        columns.append(model(**tokens, pixel_values=pixels).logits_per_image / model.logit_scale.exp())
    return torch.cat(columns, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_clip_score_is_a_hundred_times_the_models_own_cosine(clip: str, channels: int) -> None:
    data, metric = captioned(channels=channels), CLIPScore(clip)
    metric.begin(data, CPU)
    asked = data.asked(30, torch.arange(12))
    made = torch.randint(256, (12, channels, 16, 16), dtype=torch.uint8)
    theirs = cosines(clip, made, data.words(asked)).diagonal()
    assert theirs.min() < 0 < theirs.max(), "both signs are needed"
    ours = metric(made, asked)
    assert tuple(ours) == metric.names == ("clip_score",)
    torch.testing.assert_close(ours["clip_score"], 100 * theirs.clamp(min=0), rtol=1e-4, atol=1e-4)


def test_images_of_another_size_are_seen_as_the_image_processor_shows_them(clip: str) -> None:
    from transformers import CLIPImageProcessor, CLIPModel

    smooth = F.interpolate(torch.rand(4, 3, 6, 6) * 255, (40, 40), mode="bicubic").clamp(0, 255).to(torch.uint8)
    processor = CLIPImageProcessor.from_pretrained(clip)
    with torch.no_grad():
        pixels = processor(list(smooth), return_tensors="pt")["pixel_values"]
        seen = CLIPModel.from_pretrained(clip).eval().get_image_features(pixel_values=pixels)
    theirs = F.normalize(seen if isinstance(seen, Tensor) else seen.pooler_output, dim=1)
    torch.testing.assert_close(ImageText(clip).images(smooth), theirs, rtol=0, atol=0.01)  # it rounds to bytes


def test_r_precision_among_all_captions_is_whether_the_own_one_is_nearest(clip: str) -> None:
    data, metric = captioned(), RPrecision(clip, others=len(CAPTIONS) - 1)
    metric.begin(data, CPU)
    asked = data.asked(30, torch.arange(30))
    made = torch.randint(256, (30, 3, 16, 16), dtype=torch.uint8)
    words = data.words(asked)
    nearest = cosines(clip, made, list(CAPTIONS)).argmax(1).tolist()
    wanted = [100.0 * (CAPTIONS[place] == caption) for place, caption in zip(nearest, words, strict=True)]
    assert 0 < sum(wanted) < 3000
    assert metric(made, asked)["r_precision"].tolist() == wanted


class Nearness:
    """Stands for a CLIP that gives vectors which are known: of an image those that its first pixels are the row of."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def to(self, device: torch.device) -> Nearness:
        return self

    def images(self, images: Tensor) -> Tensor:
        return self.rows[images[:, 0, 0, 0].long()]

    def texts(self, texts: list[str]) -> Tensor:
        return torch.eye(len(texts))


class Numbered(Source):
    """A thousand images whose captions are their numbers, in black, all held out but one."""

    def read(self) -> Images:
        held_out = torch.arange(1000) > 0
        return Images(
            torch.zeros(1000, 1, 1, 1, dtype=torch.uint8), captions=[*map(str, range(1000))], held_out=held_out
        )


def numbered(monkeypatch: pytest.MonkeyPatch, rows: Tensor, **options: Any) -> tuple[RPrecision, TextToImage]:
    monkeypatch.setattr("diffusion_lab.metrics.text_alignment.image_text", lambda _: Nearness(rows))
    metric, data = RPrecision(**options), TextToImage(Numbered(), batch_size=1)
    metric.begin(data, CPU)
    return metric, data


def test_the_others_are_drawn_evenly_and_never_the_own_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    # One image, to which caption i is as near as its place i says, so that caption i wins if its 9 others are below it.
    metric, data = numbered(monkeypatch, torch.arange(999.0)[None], others=9)
    asked = data.asked(999, torch.arange(999))
    made = torch.zeros(999, 1, 1, 1, dtype=torch.uint8)
    hits = metric(made, asked)["r_precision"]
    for low in range(0, 999, 111):
        places = torch.arange(low, low + 111)
        share = (places / 998) ** 9  # that all of 9 are below
        spread = (share * (1 - share)).sum().sqrt() / 111
        assert abs((hits[places] / 100).mean() - share.mean()) <= 4 * spread
    assert hits[-1] == 100, "the nearest of all is never beaten"
    tied, _ = numbered(monkeypatch, torch.ones(1, 999), others=9)
    assert tied(made, asked)["r_precision"].sum() == 0


def test_the_others_belong_to_the_index_and_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    metric, data = numbered(monkeypatch, torch.randn(1, 999), others=2)
    made = torch.zeros(999, 1, 1, 1, dtype=torch.uint8)
    whole = metric(made, data.asked(999, torch.arange(999)))["r_precision"]
    places = torch.randperm(999)[:300]
    assert torch.equal(metric(made[:300], data.asked(999, places))["r_precision"], whole[places])
    again, _ = numbered(monkeypatch, torch.randn(1, 999), others=2)
    again._features, again._clip = metric._features, metric._clip
    assert torch.equal(again(made, data.asked(999, torch.arange(999)))["r_precision"], whole)
    again.seed = 1
    assert not torch.equal(again(made, data.asked(999, torch.arange(999)))["r_precision"], whole)


def test_shapes_are_read_as_they_were_asked_for() -> None:
    data, metric = TextToImage(Shapes(count=600), batch_size=16), ShapesReading()
    metric.begin(data, CPU)
    batch = data.batch("validation", torch.arange(100))
    assert metric(batch["images"], batch)["read_as_asked"].tolist() == [100] * 100
    wrong = metric(batch["images"].roll(1, 0), batch)["read_as_asked"]
    words = data.words(batch)
    assert wrong.tolist() == [100.0 * (words[i] == words[i - 1]) for i in range(100)]


@pytest.mark.parametrize(
    ("metric", "data", "message"),
    [
        ("shapes", captioned(), "metric of shapes is for the source Shapes alone: cannot read the caption"),
        ("shapes", ClassConditional(Digits(), batch_size=64), "ClassConditional gives none: leave the metric out"),
        (
            "r_precision",
            captioned(),
            "needs 99 other captions, and the held-out images have 5 distinct ones: give fewer",
        ),
        ("r_precision", ClassConditional(Digits(), batch_size=64), "R-precision needs captions, and ClassConditional"),
        ("clip_score", Unconditional(Digits(), batch_size=64), "Unconditional says nothing in words: leave the metric"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_sampling(metric: str, data: Unconditional, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        find_metric(metric).begin(data, CPU)  # type: ignore[union-attr]
    assert "\n" not in str(error.value)


def test_models_that_are_none_or_see_no_such_images_and_bad_values_are_refused(clip: str, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no CLIP at .*empty, looked for in that folder"):
        CLIPScore(str(tmp_path / "empty")).begin(captioned(), CPU)
    shutil.copytree(clip, tmp_path / "bert")
    size: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=9, **size)).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="bert is no whole CLIP, it lacks weights such as") as error:
        CLIPScore(str(tmp_path / "bert")).begin(captioned(), CPU)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="takes 1 or 3 channels: got 2"):
        CLIPScore(clip).begin(captioned(channels=2), CPU)
    with pytest.raises(InputError, match="R-precision needs others >= 1 and a seed >= 0: got 0 and 0"):
        RPrecision(others=0)
