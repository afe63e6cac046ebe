"""The samplers: one for every base, and those of the LoRAs that do with a few steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler, SchedulerMixin, TCDScheduler

SamplerKind = Literal["usual", "lcm", "tcd"]


def make_sampler(config: Mapping[str, Any], kind: SamplerKind) -> SchedulerMixin:
    """A fresh sampler with no memory of other pictures. config: of the scheduler that the base came with.

    DPM++ 2M Karras (Lu et al. 2022, arXiv 2211.01095) converges in 25 steps; it divides by the last step's signal,
    which a schedule with zero terminal SNR does not have, so such a base is drawn by DDIM as it was trained. LCM (Luo
    et al. 2023, arXiv 2310.04378) and TCD (Zheng et al. 2024, arXiv 2402.19159) draw new noise at every step.
    """
    if kind == "lcm":
        return LCMScheduler.from_config(config)
    if kind == "tcd":
        return TCDScheduler.from_config(config)
    if config.get("rescale_betas_zero_snr"):
        return DDIMScheduler.from_config(config)
    return DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", use_karras_sigmas=True)
