from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pictures import draws
from scipy import ndimage, special, stats
from torch.nn import functional as F

from diffusion_lab.data.kernels import filtered, kernels_or_none, random_blurs, random_rings
from diffusion_lab.data.resampling import METHODS, extended, resized


@pytest.mark.parametrize("method", range(3), ids=METHODS)
def test_resizing_is_that_of_torch(method: int) -> None:
    old = torch.tensor([[20, 16], [13, 9], [20, 16], [7, 16], [5, 4], [1, 1]])
    new = torch.tensor([[7, 30], [26, 5], [24, 24], [7, 16], [1, 2], [6, 3]])
    images = torch.rand(6, 2, 20, 16, dtype=torch.float64)
    ours = resized(images, old, new, (28, 32), torch.full((6,), method))
    for image, small, (h, w), (height, width) in zip(images, ours, old.tolist(), new.tolist(), strict=True):
        theirs = F.interpolate(image[None, :, :h, :w], (height, width), mode=METHODS[method])[0]
        torch.testing.assert_close(small[:, :height, :width], theirs)
        assert not small[:, height:].any()
        assert not small[:, :, width:].any()


@pytest.mark.parametrize(("mirror", "mode"), [(True, "reflect"), (False, "edge")])
def test_edges_are_continued_as_numpy_does_it(mirror: bool, mode: str) -> None:
    images = torch.rand(4, 2, 12, 9)
    sizes = torch.tensor([[12, 9], [5, 9], [1, 3], [2, 2]])
    ours = extended(images, sizes, 10, (40, 30), mirror)
    for image, large, (h, w) in zip(images, ours, sizes.tolist(), strict=True):
        theirs = np.pad(image[:, :h, :w].numpy(), ((0, 0), (10, 30 - h), (10, 20 - w)), mode)
        assert (large.numpy() == theirs).all()


def test_a_filter_is_a_convolution_with_mirrored_edges() -> None:
    images = torch.rand(3, 2, 24, 30, dtype=torch.float64)
    sizes = torch.tensor([[24, 30], [17, 30], [11, 12]])
    kernels = torch.rand(3, 21, 21, dtype=torch.float64)
    ours = filtered(images, sizes, kernels)
    for image, out, kernel, (h, w) in zip(images, ours, kernels, sizes.tolist(), strict=True):
        for plane, blurred in zip(image, out, strict=True):
            theirs = ndimage.convolve(plane[:h, :w].numpy(), kernel.numpy(), mode="mirror")
            np.testing.assert_allclose(blurred[:h, :w], theirs, atol=1e-9)


# Kernels.


def blurs(kind: int, sigma: tuple[float, float] = (1.5, 3.0), n: int = 300, sinc: float = 0.0) -> torch.Tensor:
    odds = [0.0] * 6
    odds[kind] = 1.0
    return random_blurs(draws(n), odds, sigma, sinc)


@pytest.mark.parametrize("kind", range(6))
def test_kernels_are_symmetric_squares_of_all_sizes(kind: int) -> None:
    kernels = blurs(kind)
    assert kernels.shape == (300, 21, 21)
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(300, dtype=torch.float64))
    torch.testing.assert_close(kernels, kernels.flip(1, 2))
    sides = (kernels > 0).any(2).sum(1)
    assert sides.unique().tolist() == list(range(7, 22, 2))
    turned = (kernels - kernels.transpose(1, 2)).abs().amax((1, 2)) < 1e-12
    assert turned.float().mean() == (1 if kind % 2 == 0 else 0)


@pytest.mark.parametrize("kind", range(6))
def test_kernels_have_the_shape_of_their_formula(kind: int) -> None:
    """On an axis m = (r / s)^2; what the formula says of it is undone, and leaves (r / s)^(2 beta) with one beta."""
    kernels = blurs(kind, n=1000)
    row = kernels[:, 10, 10:14] / kernels[:, 10, 10:11]  # r = 0, 1, 2, 3, in every kernel
    power = 1 / row - 1 if kind >= 4 else -2 * row.log()
    beta = (power[:, 2] / power[:, 1]).log2() / 2
    again = (power[:, 3] / power[:, 1]).log() / math.log(3) / 2
    torch.testing.assert_close(beta, again)
    deviation = power[:, 1] ** (-0.5 / beta)
    assert deviation.min() > 1.499
    assert deviation.max() < 3.001
    assert deviation.min() < 1.55
    assert deviation.max() > 2.95
    if kind < 2:
        torch.testing.assert_close(beta, torch.ones_like(beta))
    elif kind < 4:
        assert 0.499 < beta.min() < 0.51
        assert 3.9 < beta.max() < 4.001
        assert abs((beta < 1).float().mean() - 0.5) < 0.05
    else:
        assert stats.kstest(beta.numpy(), "uniform", (1, 1)).pvalue > 1e-3


def test_an_anisotropic_kernel_has_two_deviations_at_any_angle() -> None:
    kernels = blurs(1, (0.8, 1.6), 1000)
    kernels = kernels[(kernels > 0).any(2).sum(1) >= 17]
    places = torch.arange(-10, 11, dtype=torch.float64)
    yy, xx, xy = (torch.einsum("bij,i,j->b", kernels, places**p, places**q) for p, q in ((2, 0), (0, 2), (1, 1)))
    covariance = torch.stack([torch.stack([yy, xy], 1), torch.stack([xy, xx], 1)], 1)
    deviations = torch.linalg.eigvalsh(covariance).sqrt()
    assert deviations.min() > 0.79
    assert deviations.max() < 1.61
    assert abs(torch.corrcoef(torch.stack([yy, xx]))[0, 1]) < 0.9
    assert (xy > 0.2).any()
    assert (xy < -0.2).any()


def test_a_kernel_that_rings_is_the_ideal_filter() -> None:
    kernels = random_rings(draws(500))
    y, x = np.mgrid[-10:11, -10:11]
    r = np.hypot(y, x)
    for kernel in kernels.numpy()[:50]:
        inside = kernel != 0
        ratio = kernel[10, 11] / kernel[10, 10]  # 2 J1(w) / w, which falls with w
        w = np.linspace(math.pi / 3, math.pi, 20001)
        cutoff = w[np.abs(2 * special.j1(w) / w - ratio).argmin()]
        with np.errstate(invalid="ignore", divide="ignore"):
            ideal = np.where(r > 0, cutoff * special.j1(cutoff * r) / (2 * np.pi * r), cutoff**2 / (4 * np.pi)) * inside
        np.testing.assert_allclose(kernel, ideal / ideal.sum(), atol=2e-4)
    assert sorted({int(each.any(1).sum()) for each in kernels.numpy()}) == list(range(7, 22, 2))


def test_some_blurs_ring_instead_and_some_kernels_do_nothing() -> None:
    kernels = blurs(0, n=1000, sinc=0.1)
    assert 60 < (kernels < 0).flatten(1).any(1).sum() < 140
    used = torch.arange(1000) % 2 == 0
    chosen = kernels_or_none(kernels, used)
    assert torch.equal(chosen[used], kernels[used])
    images = torch.rand(1000, 1, 5, 5, dtype=torch.float64)
    same = filtered(images, torch.full((1000, 2), 5), chosen)
    torch.testing.assert_close(same[~used], images[~used])


def test_kinds_have_their_odds() -> None:
    round_ = random_blurs(draws(4000), [0.45, 0.25, 0.12, 0.03, 0.12, 0.03], (0.5, 3), 0.0)
    turned = (round_ - round_.transpose(1, 2)).abs().amax((1, 2)) < 1e-12
    assert abs(turned.float().mean() - 0.69) < 0.03
