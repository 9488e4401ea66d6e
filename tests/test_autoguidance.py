from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from oracles import (
    SCHEDULES,
    SpyNetwork,
    T,
    tiny_module,
)

from diffusion_lab import (
    Autoguidance,
    ClassConditional,
    ClassLabel,
    Denoiser,
    Digits,
    InputError,
    KarrasSchedule,
    Pipeline,
    PixelSpace,
    load,
    save,
)
from diffusion_lab.conditions import Cond
from diffusion_lab.guidance import Conditioned, autoguided


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 1.5, 3.0])
def test_autoguidance_by_the_model_itself_changes_nothing(scale: float, tmp_path: Path) -> None:
    module = tiny_module()
    save(module, tmp_path / "model")
    pipe = Pipeline(module)
    alone = pipe(labels=[1, 2], steps=4)
    assert not torch.equal(alone, pipe(labels=[3, 4], steps=4))  # type: ignore[arg-type]
    assert torch.equal(pipe(labels=[1, 2], steps=4, guidance=Autoguidance(pipe, scale)), alone)  # type: ignore[arg-type]
    assert pipe.evaluations == (4 if scale == 1 else 8)
    text = f"autoguidance(guide={str(tmp_path / 'model')!r}, scale={scale})"
    assert torch.equal(pipe(labels=[1, 2], steps=4, guidance=text), alone)  # type: ignore[arg-type]
    assert pipe.evaluations == (4 if scale == 1 else 8)


@torch.no_grad()
@pytest.mark.parametrize("name", ["zero_snr", "flow", "linear"])
def test_a_guide_is_not_asked_beyond_the_noise_that_it_knows(name: str) -> None:
    """A guide of epsilon on Karras noise has a greatest level; the model here begins at pure noise."""
    ours, theirs = SCHEDULES[name], KarrasSchedule(sigma_max=20.0)
    guide = Denoiser(SpyNetwork(), theirs, "EPSILON")
    cond = Cond(embed=torch.ones(2, 4))
    start = ours.times(3)[0]
    asked_ = autoguided(Conditioned(Denoiser(SpyNetwork(), ours, "V"), cond), Conditioned(guide, cond), 2.0)
    estimate = asked_(torch.randn(2, 4, 5, 5), start)
    assert bool(estimate.x0.isfinite().all())
    assert isinstance(guide.network, SpyNetwork)
    greatest = theirs.at(torch.tensor(theirs.start, dtype=torch.float64)).network_time
    assert guide.network.times[0] == pytest.approx(greatest, rel=1e-5)


def test_a_guide_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    pipe = Pipeline(tiny_module())
    bigger = Pipeline(tiny_module(space=PixelSpace([1, 16, 16])))
    with pytest.raises(InputError, match=r"the guide makes \[1, 16, 16\] but the model \[1, 8, 8\]"):
        pipe(labels=[1], guidance=Autoguidance(bigger))
    scaled = Pipeline(tiny_module(space=PixelSpace([1, 8, 8], 0.5)))
    with pytest.raises(InputError, match="the guide's space is .* autoguidance needs a guide of the same"):
        pipe(labels=[1], guidance=Autoguidance(scaled))
    with pytest.raises(InputError, match=r"the guide has the conditions \[\] but the model \['labels'\]"):
        pipe(labels=[1], guidance=Autoguidance(Pipeline(tiny_module(conditions={}))))
    fewer = Pipeline(tiny_module(conditions={"labels": ClassLabel(3, 16)}))
    with pytest.raises(InputError, match="the guide of autoguidance cannot be asked: label 7 is out of range"):
        pipe(labels=[7], guidance=Autoguidance(fewer))
    with pytest.raises(InputError, match="no checkpoint at nowhere"):
        pipe(labels=[7], guidance="autoguidance(guide='nowhere')")


def test_an_earlier_checkpoint_of_the_same_run_guides(tmp_path: Path) -> None:
    """By its averaged weights unless raw ones are asked for: guide + scale (model - guide) by hand."""
    module, data = tiny_module(), ClassConditional(Digits(), batch_size=64)
    paths = []
    for steps in (2, 6):
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_steps=steps,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, data)
        paths.append(tmp_path / f"{steps}.ckpt")
        trainer.save_checkpoint(paths[-1])
    model = load(paths[1]).model
    x_t, label, keep = torch.randn(2, 1, 8, 8), torch.tensor([1, 2]), torch.zeros(2, dtype=torch.bool)
    good = Conditioned(model.denoiser, model.conditions({"labels": label}, keep))
    for weights in ("ema", "raw"):
        guide = load(paths[0], weights).model  # type: ignore[arg-type]
        guidance = Autoguidance(str(paths[0]), 3.0, weights)  # type: ignore[arg-type]
        guidance.check(model)
        with torch.no_grad():
            bad = guide.denoiser(x_t, T, guide.conditions({"labels": label}, keep))
            ours, plain = guidance.wrap(good, model, {"labels": label})(x_t, T), good(x_t, T)
        torch.testing.assert_close(ours.x0, bad.x0 + 3 * (plain.x0 - bad.x0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.eps, bad.eps + 3 * (plain.eps - bad.eps), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(ours.x0, plain.x0, atol=1e-3)
