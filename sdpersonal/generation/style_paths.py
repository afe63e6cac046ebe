"""Follow the styled version of every image beside the image itself while it is denoised.

The latents x of the sampling stay without the styles, so that shapes and places are those of the prompt without them.
A style k is predicted at latents of its own, with the same noise and the x_0 that the step before gave it:

    x_k = x + sqrt(abar_t) (x0_k - x0)

It is the equation of `NoiseSchedule.add_noise` for x0_k instead of x0, so each model sees only images that it knows:
the subject's never a styled one, the style's never an unstyled one, whose look it would keep or whose background it
would replace with that of its photos. The offset x0_k - x0 is a function of both predictions (`style_transfer`), and is
added to the image at the end: a share of w_k / 2 of it, the mean over the styles.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from ..models.schedulers import NoiseSchedule
from .style_transfer import apply_style

STYLE_SCALE = 2.0  # the guidance scale at which an image is as styled as the style's own prediction


class StylePaths:
    """The offsets of a batch's images to their styled versions, (B, C, h, w) each. Without styles it does nothing.

    Args:
        num_subjects: rows are the images of that many subjects, subject by subject, of which the first of each make one
            picture, and so on: they are styled alike.
        mask: of the area that is generated, (1, 1, h, w); None: everywhere.
    """

    def __init__(self, schedule: NoiseSchedule, num_subjects: int = 1, mask: Tensor | None = None):
        self._schedule, self._num_subjects, self._mask = schedule, num_subjects, mask
        self._scales: Mapping[int, float] = {}
        self._styled: dict[int, Tensor] = {}  # x_0 as last predicted, by style
        self._offsets: dict[int, Tensor] = {}  # by style
        self._ended: Tensor | None = None  # sum for the styles whose windows are over

    def begin_step(self, scales: Mapping[int, float]) -> None:
        """Set the active styles, with their guidance scales. What the others did becomes a part of the images."""
        ended = self._offsets.keys() - scales.keys()
        offset = self._weighted(ended)
        if offset is not None:
            self._ended = offset if self._ended is None else self._ended + offset
        for index in ended:
            del self._offsets[index], self._styled[index]
        self._scales = scales

    def input(self, model_input: Tensor, ts: Tensor) -> Tensor:
        """Return the UNet's input for the prompt without styles."""
        return model_input if self._ended is None else self._schedule.shift(model_input, self._ended, ts)

    def unshifted(self, prediction: Tensor, ts: Tensor) -> Tensor:
        """Return a prediction at `input` as one at the latents of the sampling.

        A scheduler remembers predictions, and a jump of the latents would be a slope to it. So the offset of a style
        that has ended stays outside of the latents: as it is constant, the path is the same.
        """
        return prediction if self._ended is None else self._schedule.shift_prediction(prediction, -self._ended, ts)

    def styled_inputs(self, model_input: Tensor, ts: Tensor) -> list[Tensor]:
        """Return the UNet's input for each active style."""
        own = self.input(model_input, ts)
        offsets = (self._offsets.get(index) for index in self._scales)
        return [own if offset is None else self._schedule.shift(own, offset, ts) for offset in offsets]

    def end_step(self, x0: Tensor, styled: Sequence[Tensor]) -> None:
        """Compute the next offsets. styled: x_0 of each active style; none: those of the last prediction are held."""
        self._styled |= zip(self._scales, styled, strict=True) if styled else ()
        own = x0 if self._ended is None else x0 + self._ended
        for index in self._scales:
            self._offsets[index] = apply_style(own, self._styled[index], self._num_subjects) - own

    def apply(self, latents: Tensor) -> Tensor:
        """Return latents without noise, or a predicted x_0, with all styles."""
        active = self._weighted(self._scales.keys())
        return sum((offset for offset in (self._ended, active) if offset is not None), start=latents)

    def _weighted(self, indices: Collection[int]) -> Tensor | None:
        """Return what some of the active styles add to the images; None if they have not been predicted."""
        offsets = [self._scales[i] / STYLE_SCALE * self._offsets[i] for i in indices if i in self._offsets]
        if not offsets:
            return None
        mean = torch.stack(offsets).sum(0) / len(self._scales)
        return mean if self._mask is None else self._mask * mean
