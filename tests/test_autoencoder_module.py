"""What trains an autoencoder, and the folder that it becomes."""

from __future__ import annotations

import functools
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from oracles import tiny_module
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity, peak_signal_noise_ratio

from diffusion_lab import EMA, Digits, InputError, KLAutoencoder, Photographs, Unconditional, save
from diffusion_lab.autoencoder import latent_moments, load_autoencoder, save_autoencoder
from diffusion_lab.autoencoder_module import AutoencoderModule, adaptive_weight, hinge_loss
from diffusion_lab.callbacks import ReconstructionGrid
from diffusion_lab.networks.autoencoder import Posterior
from diffusion_lab.networks.discriminator import PatchDiscriminator
from diffusion_lab.perceptual import LPIPS

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
    "num_sanity_val_steps": 0,
}


FAST: dict[str, Any] = {
    "optimizer": functools.partial(torch.optim.AdamW, lr=1e-2),
    "lr_scheduler": functools.partial(torch.optim.lr_scheduler.ConstantLR, factor=1),
}


def tiny_autoencoder(channels: int = 1, multipliers: tuple[int, ...] = (1, 2)) -> KLAutoencoder:
    torch.manual_seed(0)
    return KLAutoencoder(channels, 2, width=8, multipliers=multipliers, blocks=1, attention=False)


def tiny(**options: Any) -> AutoencoderModule:
    network = tiny_autoencoder()
    torch.manual_seed(1)
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-3, betas=(0.5, 0.9))
    return AutoencoderModule(network, **{"optimizer": optimizer, **options})


def small_discriminator() -> PatchDiscriminator:
    torch.manual_seed(2)
    return PatchDiscriminator(1, width=8, layers=1)


def fit(tmp_path: Path, module: AutoencoderModule, steps: int = 2, **options: Any) -> Trainer:
    run = Trainer(**{**QUIET, "default_root_dir": tmp_path, "max_steps": steps, "enable_checkpointing": False, "limit_val_batches": 2, **options})  # fmt: skip
    run.fit(module, Unconditional(Digits(), batch_size=32))
    return run


# ------------------------------------------------------------------------------------------------ losses


def test_kl_and_l1_are_those_of_torch() -> None:
    """KL of torch.distributions over the number of an image's values, and the mean absolute error."""
    x, y = torch.rand(3, 1, 8, 8) * 2 - 1, torch.rand(3, 1, 8, 8) * 2 - 1
    posterior = Posterior(torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4))
    terms = tiny().reconstruction_terms(x, y, posterior)
    normal = torch.distributions.Normal(posterior.mean.double(), (posterior.log_variance.double() / 2).exp())
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    assert terms["kl"].item() == pytest.approx(kl.mean().item() / 64, rel=1e-5)
    assert terms["l1"].item() == terms["loss"].item() == pytest.approx(F.l1_loss(y, x).item())


def test_hinge_loss_is_its_formula() -> None:
    generator = np.random.default_rng(0)
    real, fake = generator.normal(size=(2, 4, 1, 3, 3)) * 2
    naive = sum(max(0, 1 - r) + max(0, 1 + f) for r, f in zip(real.flat, fake.flat, strict=True)) / real.size / 2
    assert hinge_loss(torch.tensor(real), torch.tensor(fake)).item() == pytest.approx(naive, rel=1e-12)


def test_the_adaptive_weight_is_the_ratio_of_gradients_by_differences() -> None:
    """Against central differences in float64 of each weight of a toy decoder's last layer."""
    torch.manual_seed(0)
    layer, h, x = torch.nn.Conv2d(3, 1, 3).double(), torch.randn(2, 3, 6, 6).double(), torch.randn(2, 1, 4, 4).double()
    judge = torch.randn(1, 1, 4, 4).double()

    def losses() -> tuple[Tensor, Tensor]:
        y = layer(h)
        return (x - y).square().mean(), -(judge * y).tanh().mean()

    def norm(which: int) -> float:
        slopes, flat = [], layer.weight.data.view(-1)
        for i in range(len(flat)):
            kept, values = flat[i].item(), []
            for shift in (1e-6, -1e-6):
                flat[i] = kept + shift
                values.append(losses()[which].item())
            flat[i] = kept
            slopes.append((values[0] - values[1]) / 2e-6)
        return float(np.linalg.norm(slopes))

    expected = norm(0) / (norm(1) + 1e-4)
    assert adaptive_weight(*losses(), layer.weight).item() == pytest.approx(expected, rel=1e-6)
    huge, none = layer(h).sum() * 1e9, layer(h).sum() * 0
    assert adaptive_weight(huge, none, layer.weight).item() == 1e4


def test_each_network_gets_the_gradient_of_its_own_loss(tmp_path: Path) -> None:
    """One backward of the sum, against one of each loss with the other network left out."""
    module = tiny(discriminator=small_discriminator(), discriminator_weight=0.7, discriminator_start=0, kl_weight=0.1)
    fit(tmp_path, module, 1)
    module.log = module.log_dict = lambda *given, **options: None  # type: ignore[method-assign, assignment]
    batch = {"images": torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8)}
    discriminator = module.discriminator
    assert discriminator is not None
    drawn: list[Tensor] = []
    module.autoencoder.decoder.register_forward_hook(lambda network, given, made: drawn.append(made))
    module.zero_grad()
    loss = module.training_step(batch, 0)
    reconstruction, x = drawn[0], batch["images"].float() / 127.5 - 1
    l1, fooling = (reconstruction - x).abs().mean(), -discriminator(reconstruction).mean()
    kl = module.autoencoder.encode(x).kl().mean() / 64
    weight = adaptive_weight(l1, fooling, module.autoencoder.decoder.last_layer)
    ours = [*module.autoencoder.parameters()]
    expected = torch.autograd.grad(l1 + 0.1 * kl + 0.7 * weight * fooling, ours, retain_graph=True)
    judging = hinge_loss(discriminator(x), discriminator(reconstruction.detach()))
    judged = torch.autograd.grad(judging, [*discriminator.parameters()])
    loss.backward()
    for parameter, gradient in zip([*ours, *discriminator.parameters()], [*expected, *judged], strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)
    assert weight > 0
    total = l1 + 0.1 * kl + 0.7 * weight * fooling + judging
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)


def test_the_discriminator_waits_for_its_step(tmp_path: Path) -> None:
    """Until then it is not touched, not even by weight decay, and the autoencoder trains as without it."""
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.5)
    module, alone = tiny(discriminator=small_discriminator(), discriminator_start=3, optimizer=optimizer), tiny(optimizer=optimizer)  # fmt: skip
    before = [p.clone() for p in module.discriminator.parameters()]  # type: ignore[union-attr]
    fit(tmp_path, module, 3)
    fit(tmp_path, alone, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, module.discriminator.parameters(), strict=True))  # type: ignore[union-attr]
    for one, other in zip(module.autoencoder.parameters(), alone.autoencoder.parameters(), strict=True):
        assert torch.equal(one, other)
    later = tiny(discriminator=small_discriminator(), discriminator_start=3, optimizer=optimizer)
    fit(tmp_path, later, 4)
    pairs = [(a, b) for a, b in zip(before, later.discriminator.parameters(), strict=True) if a.ndim == 4]  # type: ignore[union-attr]
    assert len(pairs) == 3
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_patches_see_seventy_pixels() -> None:
    discriminator = PatchDiscriminator(3, width=4).eval()
    x = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = discriminator(x)
    (seen,) = torch.autograd.grad(logits[0, 0, 7, 7], x)
    rows = seen.abs().sum((0, 1, 3)).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == 70
    assert sum(p.numel() for p in PatchDiscriminator().parameters()) == 2_765_633
    PatchDiscriminator(1, 4).check_size(24, 40)
    assert PatchDiscriminator(1, 4)(torch.randn(2, 1, 24, 24)).shape == (2, 1, 1, 1)
    with pytest.raises(InputError, match="of 3 layers needs images of 24 pixels a side: got 23x40; give it fewer"):
        PatchDiscriminator(1, 4).check_size(23, 40)


# ------------------------------------------------------------------------------------------------ LPIPS


@pytest.fixture
def alexnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TORCH_HOME with an AlexNet of random weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    path = folder / Path(torchvision.models.AlexNet_Weights.DEFAULT.url).name
    torch.save(torchvision.models.alexnet().state_dict(), path)
    return path


def test_lpips_is_torchmetrics_and_in_no_checkpoint(alexnet: Path, tmp_path: Path) -> None:
    module = AutoencoderModule(tiny_autoencoder(3), 0.8, "alex")
    x, y = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    y.requires_grad_()
    posterior = module.autoencoder.encode(x)
    terms = module.reconstruction_terms(x, y, posterior)
    theirs = learned_perceptual_image_patch_similarity(x, y.detach(), "alex")
    assert terms["lpips"].item() == pytest.approx(theirs.item(), rel=1e-5)
    assert terms["loss"].item() == pytest.approx((x - y).abs().mean().item() + 0.8 * theirs.item(), rel=1e-5)
    terms["lpips"].backward()
    assert y.grad is not None
    assert y.grad.abs().max() > 0
    own = ("autoencoder.", "ema.copies.autoencoder.", "ema._extra_state")
    assert all(key.startswith(own) for key in module.state_dict())
    assert all(name.startswith(own) for name, _ in module.named_parameters())
    optimizer = module.configure_optimizers()["optimizer"]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len([*module.autoencoder.parameters()])
    grey = torch.rand(2, 1, 32, 32)
    assert LPIPS("alex")(grey, grey).tolist() == [0, 0]
    with pytest.raises(InputError, match="LPIPS cannot see images of 8x8 .*choose another model.perceptual_network"):
        module.check_data({"images": torch.zeros(1, 3, 8, 8)})


def test_lpips_without_weights_is_one_line(alexnet: Path) -> None:
    vgg = alexnet.with_name("vgg16-397923af.pth")
    with pytest.raises(InputError) as error:
        AutoencoderModule(tiny_autoencoder(3), 1.0)
    text = str(error.value)
    assert str(vgg) in text
    assert "TORCH_HOME" in text
    assert "model.perceptual_weight 0" in text
    assert "\n" not in text
    alexnet.write_bytes(alexnet.read_bytes()[:1000])
    with pytest.raises(InputError, match="no LPIPS weights could be had from .*alexnet"):
        LPIPS("alex")
    AutoencoderModule(tiny_autoencoder(3))  # which asks for none


# ------------------------------------------------------------------------------------------------ training


def test_resuming_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Twelve steps equal six, a checkpoint, a new process's objects, and six more, the discriminator begun between."""

    def run(folder: str, steps: int, **options: Any) -> AutoencoderModule:
        seed_everything(3)
        module = tiny(discriminator=small_discriminator(), discriminator_start=4, ema=EMA(0.9))
        saver = ModelCheckpoint(tmp_path / folder, filename="last", every_n_epochs=1, enable_version_counter=False)
        made = Trainer(**QUIET, default_root_dir=tmp_path, max_steps=steps, callbacks=[saver])
        made.fit(module, Unconditional(Digits(), batch_size=239), **options)
        assert made.global_step == steps
        return module

    whole = run("whole", 12)
    run("half", 6)
    resumed = run("again", 12, ckpt_path=tmp_path / "half" / "last.ckpt")
    for key, value in whole.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, resumed.state_dict()[key]), key
    states = [torch.load(tmp_path / run / "last.ckpt", weights_only=True) for run in ("whole", "again")]
    ours, theirs = (state["optimizer_states"][0]["state"] for state in states)
    assert ours.keys() == theirs.keys()
    assert len(ours) == len([*whole.autoencoder.parameters(), *whole.discriminator.parameters()])  # type: ignore[union-attr]
    assert all(torch.equal(ours[i][name], theirs[i][name]) for i in ours for name in ours[i])
    assert states[0]["lr_schedulers"] == states[1]["lr_schedulers"]


def test_a_checkpoint_rebuilds_the_module(tmp_path: Path) -> None:
    module = tiny(discriminator=small_discriminator(), kl_weight=0.5)
    fit(tmp_path, module).save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert {key.split(".")[0] for key in state} == {"autoencoder", "discriminator", "ema"}
    again = AutoencoderModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert again.config["init_args"]["kl_weight"] == 0.5
    images = Digits().read().images[:4]
    assert torch.equal(again.reconstruct(images), module.reconstruct(images))
    assert again.trained_steps == 2


def test_validation_is_of_averaged_weights_and_posterior_means(tmp_path: Path) -> None:
    module = tiny()
    fit(tmp_path, module, 1, limit_val_batches=0)
    with torch.no_grad():
        for weight in module.autoencoder.parameters():
            weight.add_(torch.randn_like(weight))  # which would show
    data, run = Unconditional(Digits(), batch_size=32), Trainer(**QUIET)
    run.validate(module, data, verbose=False)
    images = data.part("validation").images
    x = images.float() / 127.5 - 1
    with torch.no_grad():
        y = module.averaged.decode(module.averaged.encode(x).mean)
    bytes_ = y.add(1).mul(127.5).round().clamp(0, 255)
    assert torch.equal(module.reconstruct(images), bytes_.to(torch.uint8))
    metrics = {name: value.item() for name, value in run.callback_metrics.items()}
    assert metrics["val/loss"] == metrics["val/l1"] == pytest.approx((x - y).abs().mean().item(), rel=1e-4)
    psnr = peak_signal_noise_ratio(bytes_, images.float(), data_range=255.0).item()
    assert metrics["val/psnr"] == pytest.approx(psnr, rel=1e-4)


def test_averaged_weights_are_the_closed_form(tmp_path: Path) -> None:
    module = tiny(ema=EMA(0.75, warmup=False), **FAST)
    before = [p.clone() for p in module.autoencoder.parameters()]
    fit(tmp_path, module, 1)
    for start, raw, averaged in zip(before, module.autoencoder.parameters(), module.averaged.parameters(), strict=True):
        torch.testing.assert_close(averaged, 0.75 * start + 0.25 * raw.detach())
    assert not all(torch.equal(a, b) for a, b in zip(before, module.averaged.parameters(), strict=True))


def test_it_learns(tmp_path: Path) -> None:
    module = tiny(ema=EMA(0.9), **FAST)
    images = Digits().read().images[:64]

    def error() -> float:
        return (module.reconstruct(images).float() - images.float()).abs().mean().item()

    before = error()
    fit(tmp_path, module, 60, limit_val_batches=0, max_epochs=5)
    assert error() < before / 2


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_trains(tmp_path: Path, precision: Any) -> None:
    module = tiny(discriminator=small_discriminator(), discriminator_start=0)
    run = fit(tmp_path, module, 2, precision=precision, val_check_interval=2)
    assert torch.isfinite(run.callback_metrics["val/loss"])
    assert next(module.averaged.parameters()).dtype == torch.float32


def test_the_grid_has_originals_above_reconstructions(tmp_path: Path) -> None:
    module = tiny()
    fit(tmp_path, module, 2, callbacks=[ReconstructionGrid(columns=3, rows=2)], val_check_interval=2)
    (path,) = tmp_path.rglob("reconstructions/*.png")
    assert path.name == "step_0000002.png"
    picture = np.array(Image.open(path))[..., 0]
    images = Unconditional(Digits(), batch_size=32).part("validation").images
    chosen = images[[0, 60, 120, 180, 240, 300]]
    rows = [chosen[:3], module.reconstruct(chosen[:3]), chosen[3:], module.reconstruct(chosen[3:])]
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = 3 + 51 * i, 3 + 51 * j
            shown = picture[top : top + 48 : 6, left : left + 48 : 6].astype(int)
            assert abs(shown - image[0].numpy()).max() <= 1
    for arguments, message in (
        ({"rows": 0}, "at least 1 row"),
        ({"columns": 400}, "draws 800 images but the validation"),
    ):
        with pytest.raises(InputError, match=message):
            fit(tmp_path, tiny(), 1, callbacks=[ReconstructionGrid(**arguments)])


def test_parts_that_do_not_fit_are_refused() -> None:
    for options, message in (
        ({"kl_weight": -1}, "model.kl_weight must be a number from 0: got -1"),
        ({"discriminator": PatchDiscriminator(3)}, "discriminator.channels is 3 but model.autoencoder.channels is 1"),
    ):
        with pytest.raises(InputError, match=message):
            tiny(**options)
    with pytest.raises(InputError, match="LPIPS sees images of 1 or 3 channels, not 4"):
        AutoencoderModule(tiny_autoencoder(4), 1.0)
    module = tiny(discriminator=PatchDiscriminator(1, 4))
    for shape, message in (
        ((3, 8, 8), "the data has images of 3 channels but model.autoencoder.channels is 1"),
        ((1, 2, 8, 8), "is trained on images .N, C, H, W.: got .2, 1, 2, 8, 8."),
        ((1, 9, 8), "an image of 9x8 does not fit the autoencoder's levels"),
        ((1, 8, 8), "needs images of 24 pixels a side: got 8x8"),
    ):
        with pytest.raises(InputError, match=message):
            module.check_data({"images": torch.zeros(2, *shape)})


# ------------------------------------------------------------------------------------------------ its folder


def test_moments_are_numpys() -> None:
    """In float64, over batches of any size, and of a channel that is far from zero."""
    network = tiny_autoencoder(3)
    with torch.no_grad():
        network.moments.bias[0] += 300  # type: ignore[union-attr, operator, index]
    images = Photographs(16).read().images[:37]
    mean, deviation = latent_moments(network, images.split(5))
    with torch.no_grad():
        latents = network.encode(images.float() / 127.5 - 1).mean.double().numpy()
    np.testing.assert_allclose(mean, latents.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(deviation, latents.std((0, 2, 3)), rtol=1e-5)
    with torch.no_grad():
        network.moments.weight.fill_(float("nan"))  # type: ignore[union-attr, operator]
    with pytest.raises(FloatingPointError, match="latents of the training images are not finite"):
        latent_moments(network, [images])


def test_a_folder_is_the_averaged_autoencoder_alone(tmp_path: Path) -> None:
    module = tiny(discriminator=small_discriminator(), discriminator_start=0)
    fit(tmp_path, module)
    folder = save_autoencoder(module, tmp_path / "a", [0.5, 1], [2, 3.0])
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    again = load_autoencoder(folder)
    assert (again.mean, again.deviation) == ([0.5, 1.0], [2.0, 3.0])
    assert again.network.config == module.autoencoder.config
    ours, averaged = again.network.state_dict(), module.averaged.state_dict()
    assert ours.keys() == averaged.keys()
    assert all(torch.equal(ours[key], averaged[key]) for key in ours)
    assert not all(torch.equal(ours[key], value) for key, value in module.autoencoder.state_dict().items())
    written = json.loads((folder / "config.json").read_text())
    assert sorted(written) == ["autoencoder", "diffusion_lab", "latents"]
    with pytest.raises(InputError, match="already holds a finished run"):
        save_autoencoder(module, folder, [0, 0], [1, 1])
    save_autoencoder(module.autoencoder, folder, [0, 0], [1, 1], overwrite=True)
    assert load_autoencoder(folder).mean == [0, 0]
    for mean, deviation, message in (
        ([0.0], [1.0, 1.0], r"have 2 channels: give a mean for each, not \[0.0\]"),
        ([0.0, 0.0], [1.0, 0.0], "deviations above 0"),
        ([0.0, float("nan")], [1.0, 1.0], "must be numbers"),
    ):
        with pytest.raises(InputError, match=message):
            save_autoencoder(module, tmp_path / "b", mean, deviation)
    assert not (tmp_path / "b").exists()


def test_what_is_no_autoencoder_is_said_in_one_line(tmp_path: Path) -> None:
    folder = save_autoencoder(tiny_autoencoder(), tmp_path / "a", [0, 0], [1, 1])

    def refused(path: Path, message: str) -> None:
        with pytest.raises(InputError, match=message) as error:
            load_autoencoder(path)
        assert "\n" not in str(error.value)

    refused(tmp_path / "nowhere", "no autoencoder at .*nowhere: give a folder that `diffusion-lab autoencoder fit")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "it has no config.json")
    refused(save(tiny_module(), tmp_path / "model"), "holds a diffusion model, not an autoencoder")
    config = json.loads((folder / "config.json").read_text())
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:1000])
    refused(folder, "model.safetensors is missing, truncated or no safetensors file")
    (folder / "model.safetensors").unlink()
    refused(folder, "model.safetensors is missing")
    (folder / "model.safetensors").write_bytes(whole)
    for changed, message in (
        ({"autoencoder": tiny_autoencoder(3).config}, "do not fit their config"),
        ({"autoencoder": tiny_module().denoiser.network.config}, "holds a UNet, not a KLAutoencoder"),
        ({"latents": {"mean": [0.0]}}, "has no mean and deviation"),
        ({"autoencoder": {"class_path": "os.system", "init_args": {}}}, "comes from outside"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **changed}))
        refused(folder, message)
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    refused(folder, "holds UNet2DModel, not an autoencoder")
    (folder / "config.json").write_text("{")
    refused(folder, "truncated or not JSON")


def test_a_diffusers_folder_is_read_by_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = types.ModuleType("diffusion_lab.interop.diffusers")
    network = tiny_autoencoder()
    reader.read_autoencoder = lambda path: (network, [0.0, 0.0], [5.5, 5.5])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "diffusion_lab.interop.diffusers", reader)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    assert load_autoencoder(tmp_path) == (network, [0.0, 0.0], [5.5, 5.5])


@pytest.mark.parametrize("size", ["channels", "latent_channels", "width", "blocks"])
def test_sizes_that_are_not_positive_are_named(size: str) -> None:
    with pytest.raises(InputError, match=f"{size} of an autoencoder must be at least 1: got 0"):
        KLAutoencoder(**{size: 0})
    with pytest.raises(InputError, match="multipliers of an autoencoder must be at least 1: got 0"):
        KLAutoencoder(multipliers=())
    with pytest.raises(InputError, match="layers of a discriminator must be at least 1: got 0"):
        PatchDiscriminator(layers=0)
