"""The Frechet distance within each class: do generated images of a class look like the real ones of that class?"""

from __future__ import annotations

from diffusion_lab.errors import InputError
from diffusion_lab.metrics.base import Score, SetMetric
from diffusion_lab.metrics.features import Features
from diffusion_lab.metrics.frechet import frechet_distance

SHOWN = 10  # labels in an error


class IntraClassDistance(SetMetric):
    """The mean over classes of the Frechet distance between the generated and the real images of a class.

    The intra-FID of Miyato & Koyama (arXiv 1802.05637). Unlike the distance of all images it sees labels that
    are not followed. Each class has only a part of the images, so its bias is that of the fewer.
    """

    classes = True
    names = ("fd_intra_class",)

    def check(self, real: int, made: int) -> None:
        if made < 2:
            raise InputError(f"the distance within each class needs at least 2 generated images of each: got {made}")

    def __call__(self, real: Features, made: Features) -> dict[str, Score]:
        """The score.

        Raises:
            InputError: A class of one set is not in the other, or has a single image there.
        """
        theirs, ours = real.classes or {}, made.classes or {}
        for which, lacking in (("real", ours.keys() - theirs.keys()), ("generated", theirs.keys() - ours.keys())):
            if lacking:
                more = ", ..." if len(lacking) > SHOWN else ""
                raise InputError(
                    "the distance within each class needs at least 2 real and 2 generated images of each: too few "
                    f"{which} ones of {', '.join(map(str, sorted(lacking)[:SHOWN]))}{more}; take more images, or "
                    "leave the metric out"
                )
        if not ours:
            raise InputError("the distance within each class needs at least 2 images of a class: no class has as many")
        return {
            "fd_intra_class": Score(sum(frechet_distance(theirs[label], ours[label]) for label in ours) / len(ours))
        }
