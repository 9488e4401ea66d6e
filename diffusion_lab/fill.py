"""The images and masks that are to be filled, and how what was made goes back into them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.guidance import Denoise
from diffusion_lab.samplers import Noise, OnStep, RePaint, Sampler
from diffusion_lab.spaces import Space


class Fill:
    """Images, a mask and how it is filled."""

    def __init__(self, images: Tensor | None, mask: Tensor | None, filling: RePaint, space: Space, count: int) -> None:
        """
        Args:
            images: uint8 [N, C, H, W] or [C, H, W]; one serves all.
            mask: [N, 1, H, W] or [H, W], likewise: above 0.5 or true where to fill.
            filling: How.
            space: Where the model lives.
            count: How many images are made.

        Raises:
            InputError: One of the two is missing, or they do not fit the model or each other.
        """
        self.filling, self.space = filling, space
        self.images, self.mask = check_fill(images, mask, space, count)

    def __call__(
        self, sampler: Sampler, denoise: Denoise, x_T: Tensor, times: Tensor, noise: Noise, part: slice, on_step: OnStep
    ) -> Tensor:
        known = self.space.encode(self.images[part].to(x_T.device))
        # In a smaller latent, a place is filled if any of its pixels is.
        mask = F.adaptive_max_pool2d(self.mask[part].float(), x_T.shape[-2:]).bool().to(x_T.device)
        return self.filling(sampler, denoise, x_T, times, noise, known, mask, on_step)

    def moves(self, steps: int) -> int:
        """How many moves a walk of so many steps has, jumps back included."""
        return len(self.filling.positions(steps)) - 1

    def paste(self, result: Tensor, part: slice) -> Tensor:
        """The result, with the known pixels as they were given, which a latent space alone would not keep."""
        return torch.where(self.mask[part].to(result.device), result, self.images[part].to(result.device))


def check_fill(
    images: Tensor | None, mask: Tensor | None, space: Space, count: int | None = None
) -> tuple[Tensor, Tensor]:
    """Images [N, C, H, W] and their mask, bool [N, 1, H, W].

    Args:
        images: As `Fill` takes them.
        mask: Likewise.
        space: Where the model lives.
        count: N; as many as there are images, or masks, unless given.

    Raises:
        InputError: One of the two is missing, or they do not fit the model or each other.
    """
    for name, given in (("images", images), ("mask", mask)):
        if not isinstance(given, Tensor):
            got = f"no {name}" if given is None else f"a {type(given).__name__} for {name}"
            raise InputError(f"filling needs images and a mask, as tensors: got {got}")
    if len(space.image_shape) != 3:
        raise InputError("a mask is filled in images, and this model makes clips: leave images and mask out")
    assert images is not None
    assert mask is not None
    images = check_images(images if images.ndim == 4 else images[None], space)
    side = images.shape[-2:]
    if mask.shape != side and (mask.ndim != 4 or mask.shape[1:] != (1, *side)):
        raise InputError(f"the mask must be {list(side)} or [N, 1, {side[0]}, {side[1]}]: got {list(mask.shape)}")
    mask = (mask if mask.dtype == torch.bool else mask > 0.5).reshape(-1, 1, *side)
    count = max(len(images), len(mask)) if count is None else count
    for name, given in (("images", images), ("masks", mask)):
        if len(given) not in (1, count):
            raise InputError(f"there are {len(given)} {name} to fill {count} of: give 1 or {count}")
    return images.expand(count, -1, -1, -1), mask.expand(count, -1, -1, -1)


def check_images(images: Tensor, space: Space) -> Tensor:
    """Raise InputError unless images are uint8 [N, C, H, W] of the model's shape."""
    if not isinstance(images, Tensor):
        raise InputError(f"images must be a tensor of uint8, not {type(images).__name__}")
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != space.image_shape:
        raise InputError(
            f"images must be uint8 [N, {', '.join(map(str, space.image_shape))}], as the model makes them: got "
            f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        )
    return images
