"""Map scheduler names of other programs to the diffusers class and settings that each of them means.

A name has two parts, as in A1111 since 1.9: the sampler ("DPM++ 2M") and the schedule type ("Karras"). Our own names
are A1111's with both parts: "DPM++ 2M Karras". ComfyUI, InvokeAI, NovelAI, Fooocus, SwarmUI, SD.Next, Draw Things and
diffusers spell them otherwise; case, blanks and punctuation never matter.

Sources: `modules/sd_samplers_kdiffusion.py`, `sd_schedulers.py` of A1111 1.10; `comfy/samplers.py` of ComfyUI;
`invokeai/backend/stable_diffusion/schedulers/schedulers.py`; diffusers 0.42 (`schedulers/`, and the table of names in
`api/schedulers/overview.md`). This module imports no torch, so that names are checked before anything is loaded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from ..errors import UserError, printable

PLAIN, SGM = "Uniform", "SGM Uniform"
_FLAGS = {
    "Karras": "use_karras_sigmas",  # Karras et al. 2022, arXiv 2206.00364, equation 5, rho 7
    "Exponential": "use_exponential_sigmas",
    "Beta": "use_beta_sigmas",  # Lee et al. 2024, arXiv 2407.12173, alpha and beta 0.6
}
_SCHEDULES: dict[str, tuple[str, ...]] = {  # A1111's label -> other programs' words for it
    PLAIN: ("normal", "native", "linspace"),
    "Karras": ("k",),
    "Exponential": ("polyexponential",),  # A1111's and NovelAI's rho is 1, which is the exponential one
    SGM: ("sgm",),
    "Simple": ("trailing",),
    "DDIM": ("ddim uniform", "leading"),
    "Beta": (),
}
_NO_SCHEDULE: dict[str, tuple[str, ...]] = {  # schedules that no class of diffusers has
    "KL Optimal": (),
    "Align Your Steps": ("ays",),
    "Align Your Steps GITS": ("ays gits", "gits"),
    "Align Your Steps 11": ("ays 11",),
    "Align Your Steps 32": ("ays 32", "ays 30"),
    "Turbo": ("sd turbo",),
    "Linear Quadratic": (),
    "Laplace": (),
    "EDM": ("edm playground v2.5",),
    "Substep": (),
}
_AUTOMATIC = ("", "automatic", "auto", "default", "none")

_TWICE = ("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete")

Family = Literal["sigma", "spacing", "lambda", "singlestep", "own"]
"""Which schedules a class supports: "sigma": all; "spacing": those that choose timesteps; "lambda": all but
Uniform and DDIM, since its `linspace` is SGM Uniform; "singlestep": as "lambda" without Simple; "own": one."""
_CAN: dict[Family, tuple[str, ...]] = {
    "sigma": (PLAIN, "Karras", "Exponential", SGM, "Simple", "DDIM", "Beta"),
    "spacing": (PLAIN, SGM, "Simple", "DDIM"),
    "lambda": (SGM, "Karras", "Exponential", "Simple", "Beta"),
    "singlestep": (SGM, "Karras", "Exponential", "Beta"),
    "own": (),
}
_SPACING = {PLAIN: "linspace", SGM: "trailing", "Simple": "trailing", "DDIM": "leading"}


@dataclass(frozen=True)
class Sampler:
    """A sampler: its A1111 name, its diffusers class without "Scheduler", and that class's options.

    plain: the schedule that the name alone means; automatic: the one that A1111's "Automatic" means, "" if that is the
    plain one; aliases: other programs' names; near: how the class differs from the sampler of that name, "" if it is
    the same method.
    """

    name: str
    diffusers: str
    family: Family
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    plain: str = PLAIN
    automatic: str = ""
    near: str = ""

    @property
    def default(self) -> str:
        """Return the schedule that A1111's "Automatic" means."""
        return self.automatic or self.plain

    @property
    def schedules(self) -> tuple[str, ...]:
        """Return A1111's labels of the schedules that diffusers supports here; empty if the class has only its own."""
        return _CAN[self.family]


def _multistep(**options: Any) -> dict[str, Any]:
    return {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"} | options


_FINAL = {"lower_order_final": True}  # the last step, to zero noise, cannot be of the second order
_SINGLESTEP = "diffusers has no {}; its singlestep DPM-Solver++ of the same order is used instead"
_DDIM = {"clip_sample": False}  # Stable Diffusion's latents are not within -1 and 1
SAMPLERS = (
    Sampler("Euler", "EulerDiscrete", "sigma"),
    Sampler("Euler a", "EulerAncestralDiscrete", "spacing", ("euler ancestral",)),
    Sampler("Heun", "HeunDiscrete", "sigma"),
    Sampler("LMS", "LMSDiscrete", "sigma", ("lmsd",)),
    Sampler("DPM2", "KDPM2Discrete", "sigma", automatic="Karras"),
    Sampler("DPM2 a", "KDPM2AncestralDiscrete", "sigma", ("dpm2 ancestral", "kdpm2 ancestral"), automatic="Karras"),
    Sampler("DPM++ 2M", "DPMSolverMultistep", "lambda", ("dpmsolver++ 2m",), _multistep(), SGM, "Karras"),
    Sampler(
        "DPM++ 2M SDE",
        "DPMSolverMultistep",
        "lambda",
        (),
        _multistep(algorithm_type="sde-dpmsolver++"),
        SGM,
        "Exponential",
    ),
    Sampler(
        "DPM++ 2M SDE Heun",
        "DPMSolverMultistep",
        "lambda",
        (),
        _multistep(algorithm_type="sde-dpmsolver++", solver_type="heun"),
        SGM,
        "Exponential",
    ),
    Sampler("DPM++ 3M", "DPMSolverMultistep", "lambda", (), _multistep(solver_order=3), SGM, "Karras"),
    Sampler(
        "DPM++ 3M SDE",
        "DPMSolverMultistep",
        "lambda",
        (),
        _multistep(algorithm_type="sde-dpmsolver++", solver_order=3),
        SGM,
        "Exponential",
        "diffusers solves the third order in another way",
    ),
    Sampler("DPM++ 2S", "DPMSolverSinglestep", "singlestep", (), _multistep(**_FINAL), SGM, "Karras"),
    Sampler(
        "DPM++ 2S a",
        "DPMSolverSinglestep",
        "singlestep",
        ("dpm++ 2s ancestral",),
        _multistep(**_FINAL),
        SGM,
        "Karras",
        _SINGLESTEP.format("DPM++ 2S a"),
    ),
    Sampler(
        "DPM++ SDE",
        "DPMSolverSinglestep",
        "singlestep",
        ("dpmsolver sde", "dpm sde"),
        _multistep(algorithm_type="sde-dpmsolver++", **_FINAL),
        SGM,
        "Karras",
        _SINGLESTEP.format("DPM++ SDE without torchsde"),
    ),
    Sampler("UniPC", "UniPCMultistep", "lambda", ("uni_pc_bh2",), {"solver_type": "bh2", "solver_order": 2}, SGM),
    Sampler("DEIS", "DEISMultistep", "lambda", (), {"solver_order": 2}, SGM),
    Sampler("SA Solver", "SASolver", "lambda", (), {}, SGM),
    Sampler("DDIM", "DDIM", "spacing", ("ddim v3",), _DDIM, "DDIM"),
    Sampler("DDPM", "DDPM", "spacing", (), _DDIM, "DDIM"),
    Sampler("PLMS", "PNDM", "own", (), {"skip_prk_steps": True, "timestep_spacing": "leading", "steps_offset": 1}),
    Sampler("LCM", "LCM", "own"),
    Sampler("TCD", "TCD", "own"),
)
_CFG = "its guidance (CFG++) is not that of any class in diffusers"
NO_COUNTERPART: Mapping[str, str] = MappingProxyType(  # a name, or the beginning or end of one -> why
    {
        "DPM fast": "diffusers has no such class",
        "DPM adaptive": "diffusers has none that chooses its own number of steps",
        "Restart": "diffusers has none that adds noise and goes back",
        "Heun++ 2": "diffusers has no such class",
        "HeunPP2": "diffusers has no such class",
        "ER SDE": "diffusers has no such class",
        "RES Multistep": "diffusers has no such class",
        "RES Multistep Ancestral": "diffusers has no such class",
        "Gradient Estimation": "diffusers has no such class",
        "SEEDS 2": "diffusers has no such class",
        "SEEDS 3": "diffusers has no such class",
        "SA Solver PECE": "diffusers has no such class",
        "IPNDM": "diffusers' class is not for Stable Diffusion's noise levels",
        "IPNDM V": "diffusers has no such class",
        "Exp Heun 2 x0": "diffusers has no such class",
        "Exp Heun 2 x0 SDE": "diffusers has no such class",
        "Euler CFG++": _CFG,
        "DDIM CFG++": _CFG,
        "Euler a CFG++": _CFG,
        "Euler Ancestral CFG++": _CFG,
        "DPM++ 2S a CFG++": _CFG,
        "DPM++ 2S Ancestral CFG++": _CFG,
        "DPM++ SDE CFG++": _CFG,
        "DPM++ 2M CFG++": _CFG,
        "DPM++ 2M SDE CFG++": _CFG,
        "DPM++ 3M SDE CFG++": _CFG,
        "RES Multistep CFG++": _CFG,
        "RES Multistep Ancestral CFG++": _CFG,
        "Gradient Estimation CFG++": _CFG,
    }
)


@dataclass(frozen=True)
class Scheduler:
    """A scheduler as diffusers runs it: its class and its settings.

    sampler, schedule: A1111's two names of what was requested, schedule "" if the sampler has only its own;
    diffusers: the class without "Scheduler"; options: override the model's own configuration; near: how it differs
    from what was requested, in words, "" if it does not.
    """

    sampler: str
    schedule: str
    diffusers: str
    options: Mapping[str, Any]
    near: str = ""

    @property
    def name(self) -> str:
        """Return the name used in requests and recipes: both parts, without the schedule if it is the default."""
        sampler = _BY_NAME[self.sampler]
        schedule = "" if self.schedule == sampler.plain == sampler.default else self.schedule
        return f"{self.sampler} {schedule}".strip()

    @property
    def note(self) -> str:
        """Return a sentence on how it differs from what was requested, "" if it does not."""
        return f"{self.name}: {self.near}." if self.near else ""

    @property
    def max_steps(self) -> int | None:
        """Return the most steps that the class supports, None for no limit."""
        return 50 if self.diffusers in ("LCM", "TCD") else None  # `original_inference_steps`

    def predictions(self, steps: int, skipped: int = 0) -> int:
        """Return the number of model evaluations in `steps` steps without the first `skipped`."""
        computed = steps - skipped
        if self.diffusers in _TWICE:
            return 2 * computed - 1  # each step but the last is corrected by a second prediction
        return computed + 1 if self.diffusers == "PNDM" and steps > 1 else computed


def find(sampler: str, schedule: str | None = None, program: str = "") -> Scheduler | None:
    """Find the scheduler for two names, or for one name with both parts in it; None if it has no counterpart.

    schedule: None for the sampler's plain one; "Automatic" for the one that A1111 chooses. program: "a1111" or
    "comfyui" if the names come from an image of that program: some names mean different things in the two.
    """
    schedule = schedule or None
    key, options = _options(sampler)
    match, label = _split(key)
    match = _variant(match, options)
    for option in options:
        label = _SCHEDULE_KEYS.get(option, label)
    if match is None:
        return None
    if schedule is not None and _key(schedule) not in _AUTOMATIC:
        label = _SCHEDULE_KEYS.get(_key(schedule))
        if label is None:
            return None
    elif label is None and schedule is not None:
        label = match.default
    if label is None:
        label = PLAIN if program == "a1111" and match.plain == SGM else match.plain
    return _made(match, "" if match.family == "own" else label, program)


def named(text: str) -> Scheduler:
    """Return the scheduler of that name. Raises UserError, which suggests similar names."""
    if scheduler := find(text):
        return scheduler
    quoted = printable(repr(text), 60)
    if reason := no_counterpart(text):
        raise UserError(f"scheduler {quoted} cannot be used: {reason}.", "For example 'DPM++ 2M Karras'.")
    raise UserError(f"scheduler {quoted} is unknown.", f"Nearest: {', '.join(_nearest(text))}.")


def difference(name: str | None) -> str:
    """Describe how the named scheduler differs from the requested one; "" for no name, or if it does not."""
    return named(name).note if name else ""


def no_counterpart(sampler: str) -> str:
    """Return why a sampler of other programs cannot be used; "" for any other name."""
    key = _key(sampler)
    for name, reason in NO_COUNTERPART.items():
        name_key = _key(name)
        if key.removeprefix("k") == name_key or (key.startswith(name_key) and key[len(name_key) :] in _SCHEDULE_KEYS):
            return reason
    return ""


def _made(sampler: Sampler, label: str, program: str) -> Scheduler:
    differences, used = [sampler.near] if sampler.near else [], label
    if label and label not in sampler.schedules:
        used = sampler.plain
        differences.append(f"diffusers has no schedule {label} for {sampler.name}; {used} is used")
    elif label == "Beta" and program == "comfyui":
        differences.append("ComfyUI's beta is spaced over timesteps, this one over sigmas")
    options = dict(sampler.options) | _schedule_options(sampler.family, used)
    return Scheduler(sampler.name, label, sampler.diffusers, MappingProxyType(options), "; ".join(differences))


def _schedule_options(family: Family, label: str) -> dict[str, Any]:
    """Return diffusers' options for a schedule. All are explicit, since the model's configuration may set others."""
    if family == "own":
        return {}
    # These schedules run from the model's first to its last sigma, with which "linspace" begins and ends.
    options: dict[str, Any] = {"timestep_spacing": _SPACING.get(label, "linspace"), "steps_offset": 1}
    if family in ("lambda", "singlestep"):
        options["timestep_spacing"] = "trailing" if label == "Simple" else "linspace"
    if family != "spacing":
        options |= {flag: flag == _FLAGS.get(label) for flag in _FLAGS.values()}
    if family == "singlestep":
        del options["timestep_spacing"], options["steps_offset"]
    return options


def _key(text: str) -> str:
    """Normalize a name: case, blanks and punctuation do not matter."""
    return re.sub(r"[\W_]", "", text.lower().replace("++", "pp"))


def _options(text: str) -> tuple[str, list[str]]:
    """Split a name from the options in brackets behind it: `EulerDiscreteScheduler(use_karras_sigmas=True)`."""
    head, bracket, rest = text[:200].partition("(")
    if not bracket or "=" not in rest:
        return _key(text[:200]), []
    set_ = [part.partition("=") for part in rest.rstrip(") ").split(",")]
    return _key(head), [
        _key(name.removeprefix(" use_").removeprefix("use_").removesuffix("_sigmas"))
        if _key(value) == "true"
        else _key(value)
        for name, _, value in ((part[0].strip(), part[1], part[2]) for part in set_)
    ]


def _variant(sampler: Sampler | None, options: list[str]) -> Sampler | None:
    """Find the sampler for the options: DPM++ 2M and its relatives are one diffusers class with different options."""
    if sampler is None or sampler.diffusers not in ("DPMSolverMultistep", "DPMSolverSinglestep") or not options:
        return sampler
    settings = dict(sampler.options)
    for option in options:
        for setting, value in (
            ("algorithm_type", "sde-dpmsolver++"),
            ("solver_type", "heun"),
            ("solver_order", 3),
        ):
            if option == _key(str(value)):
                settings[setting] = value
    matches = (
        candidate
        for candidate in SAMPLERS
        if candidate.diffusers == sampler.diffusers and candidate.options == settings
    )
    return next(matches, None)


def _split(key: str) -> tuple[Sampler | None, str | None]:
    """Split one name into the sampler and the schedule's label."""
    if key in _SAMPLER_KEYS:
        return _SAMPLER_KEYS[key], None
    for ending in _SCHEDULE_ENDINGS:
        if key.endswith(ending) and (sampler := _SAMPLER_KEYS.get(key[: -len(ending)])):
            return sampler, _SCHEDULE_KEYS[ending]
    if key.endswith("automatic") and (sampler := _SAMPLER_KEYS.get(key.removesuffix("automatic"))):
        return sampler, sampler.default
    return None, None


def _nearest(text: str) -> list[str]:
    keys = {_key(name): name for name in NAMES}
    matches = difflib.get_close_matches(_key(text[:100]), keys, n=4, cutoff=0.3)
    return [keys[key] for key in matches] or ["Euler a", "DPM++ 2M Karras", "DDIM", "UniPC"]


def _sampler_keys() -> dict[str, Sampler]:
    keys: dict[str, Sampler] = {}
    for sampler in SAMPLERS:
        for name in (sampler.name, *sampler.aliases, sampler.diffusers, f"{sampler.diffusers}Scheduler"):
            for key in (_key(name), f"{_key(name)}gpu", f"k{_key(name)}"):  # NovelAI and the first A1111: k_euler
                keys.setdefault(key, sampler)
    return keys


_BY_NAME = {sampler.name: sampler for sampler in SAMPLERS}
_SAMPLER_KEYS = _sampler_keys()
_SCHEDULE_KEYS = {_key(word): label for label, words in (_SCHEDULES | _NO_SCHEDULE).items() for word in (label, *words)}
_SCHEDULE_ENDINGS = sorted(_SCHEDULE_KEYS, key=len, reverse=True)
SCHEDULERS = tuple(
    _made(sampler, label, "") for sampler in SAMPLERS if not sampler.near for label in sampler.schedules or ("",)
)
"""The schedulers that are exactly what their name says."""
NAMES = tuple(scheduler.name for scheduler in SCHEDULERS)


def table() -> str:
    """Return the samplers as a Markdown table, for `docs/schedulers.md`."""
    head = ("sampler", "also called", "in diffusers", "schedules, the plain one first", "Automatic")
    rows = [head, ("---",) * len(head), *map(_row, SAMPLERS)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(sampler: Sampler) -> tuple[str, ...]:
    schedules = sorted(sampler.schedules, key=lambda label: label != sampler.plain)
    options = [f"{name}={value}" for name, value in sampler.options.items() if name not in (*_DDIM, *_FINAL)]
    return (
        f"{sampler.name}{'*' if sampler.near else ''}",
        ", ".join(sampler.aliases),
        " ".join([f"{sampler.diffusers}Scheduler", *options]),
        ", ".join(schedules) or "its own",
        sampler.default if schedules else "",
    )
