"""Names of schedulers in other programs, the sigmas that they mean, and images drawn by each against diffusers' own
pipelines; clip skip likewise."""

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from conftest import ROOT
from sdpersonal.config import GenerateRequest
from sdpersonal.config.scheduler_table import (
    NAMES,
    NO_COUNTERPART,
    SAMPLERS,
    SCHEDULERS,
    find,
    named,
    no_counterpart,
    table,
)
from sdpersonal.errors import UserError
from sdpersonal.generation import Generator
from sdpersonal.generation.denoise import InitLatents, SamplingConfig, StepConditioning, denoise
from sdpersonal.image_metadata import Recipe
from sdpersonal.image_metadata.write_infotext import format_infotext
from sdpersonal.models import Conditioning, load_base
from sdpersonal.models.schedulers import NoiseSchedule, check_scheduler, make_scheduler
from support.narrow import save_narrow

A1111 = """DPM++ 2M|DPM++ SDE|DPM++ 2M SDE|DPM++ 2M SDE Heun|DPM++ 2S a|DPM++ 3M SDE|Euler a|Euler|LMS|Heun|DPM2|DPM2 a
DPM fast|DPM adaptive|Restart|DDIM|DDIM CFG++|PLMS|UniPC|LCM""".replace("\n", "|").split("|")
A1111_SCHEDULES = """Automatic|Uniform|Karras|Exponential|Polyexponential|SGM Uniform|KL Optimal|Align Your Steps|Simple
Normal|DDIM|Beta|Turbo|Align Your Steps GITS|Align Your Steps 11|Align Your Steps 32""".replace("\n", "|").split("|")
A1111_BEFORE_1_9 = """Euler a|Euler|LMS|Heun|DPM2|DPM2 a|DPM++ 2S a|DPM++ 2M|DPM++ SDE|DPM++ 2M SDE|DPM++ 2M SDE Heun
DPM++ 2M SDE Heun Karras|DPM++ 2M SDE Heun Exponential|DPM++ 3M SDE|DPM++ 3M SDE Karras|DPM++ 3M SDE Exponential
DPM fast|DPM adaptive|LMS Karras|DPM2 Karras|DPM2 a Karras|DPM++ 2S a Karras|DPM++ 2M Karras|DPM++ SDE Karras
DPM++ 2M SDE Karras|DPM++ 2M SDE Exponential|Restart|DDIM|PLMS|UniPC""".replace("\n", "|").split("|")
COMFYUI = str.split("""
euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 exp_heun_2_x0
exp_heun_2_x0_sde dpm_2 dpm_2_ancestral lms dpm_fast dpm_adaptive dpmpp_2s_ancestral
dpmpp_2s_ancestral_cfg_pp dpmpp_sde dpmpp_sde_gpu dpmpp_2m dpmpp_2m_cfg_pp dpmpp_2m_sde
dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu ddpm lcm
ipndm ipndm_v deis res_multistep res_multistep_cfg_pp res_multistep_ancestral
res_multistep_ancestral_cfg_pp gradient_estimation gradient_estimation_cfg_pp er_sde seeds_2
seeds_3 sa_solver sa_solver_pece ddim uni_pc uni_pc_bh2 tcd
""")
COMFYUI_SCHEDULES = str.split("""
normal karras exponential sgm_uniform simple ddim_uniform beta linear_quadratic kl_optimal
""")
INVOKEAI = str.split("""
ddim ddpm deis deis_k lms lms_k pndm heun heun_k euler euler_k euler_a kdpm_2 kdpm_2_k kdpm_2_a
kdpm_2_a_k dpmpp_2s dpmpp_2s_k dpmpp_2m dpmpp_2m_k dpmpp_2m_sde dpmpp_2m_sde_k dpmpp_3m dpmpp_3m_k
dpmpp_sde dpmpp_sde_k unipc unipc_k lcm tcd
""")
NOVELAI = str.split("""
k_euler k_euler_ancestral k_dpmpp_2s_ancestral k_dpmpp_2m k_dpmpp_2m_sde k_dpmpp_sde k_dpm_2
k_dpm_2_ancestral k_lms k_heun k_dpm_fast k_dpm_adaptive ddim ddim_v3 plms
""")
DRAW_THINGS = """DPM++ 2M Karras|Euler A|DDIM|PLMS|DPM++ SDE Karras|UniPC|LCM|TCD|Euler A Trailing|DPM++ SDE Trailing
DPM++ 2M AYS|Euler A AYS|DPM++ SDE AYS|DPM++ 2M Trailing|DDIM Trailing""".replace("\n", "|").split("|")
NEAR = ("DPM++ 2S a Karras", "DPM++ SDE Karras", "DPM++ 3M SDE Exponential")


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*A1111, *A1111_BEFORE_1_9, *COMFYUI, *INVOKEAI, *NOVELAI, *DRAW_THINGS])
def test_sampler_names_of_other_programs_are_known_or_refused_with_a_reason(name):
    result, reason = find(name), no_counterpart(name)
    assert (result is None) == bool(reason)
    if result is None:
        with pytest.raises(UserError, match="cannot be used: "):
            GenerateRequest(prompt="a", scheduler=name)
    else:
        assert GenerateRequest(prompt="a", scheduler=name).scheduler == result.name


@pytest.mark.parametrize("schedule", [*A1111_SCHEDULES, *COMFYUI_SCHEDULES])
def test_every_schedule_works_with_every_sampler_or_notes_a_substitute(schedule):
    for sampler in SAMPLERS:
        result = find(sampler.name, schedule)
        assert result is not None and result.sampler == sampler.name
        if result.schedule not in ("", *sampler.schedules):
            assert f"no schedule {result.schedule} for" in result.near
    assert find("Euler", "no such schedule") is None


@pytest.mark.parametrize(
    ("name", "schedule", "kind", "settings"),
    [
        ("DPM++ 2M Karras", None, "DPMSolverMultistep", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
        ("DPM++ 2M", "Automatic", "DPMSolverMultistep", {"use_karras_sigmas": True}),
        ("dpmpp_2m_sde_gpu", "karras", "DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
        ("dpmpp_2m_sde_heun", "exponential", "DPMSolverMultistep", {"solver_type": "heun"}),
        ("DPM++ 2M SDE", "Automatic", "DPMSolverMultistep", {"use_exponential_sigmas": True}),
        ("Euler a", "Automatic", "EulerAncestralDiscrete", {"timestep_spacing": "linspace"}),
        ("euler", "sgm_uniform", "EulerDiscrete", {"timestep_spacing": "trailing"}),
        ("euler", "simple", "EulerDiscrete", {"timestep_spacing": "trailing"}),
        ("euler", "ddim_uniform", "EulerDiscrete", {"timestep_spacing": "leading", "steps_offset": 1}),
        ("k_dpm_2_ancestral", "native", "KDPM2AncestralDiscrete", {"use_karras_sigmas": False}),
        ("DPM2", "Automatic", "KDPM2Discrete", {"use_karras_sigmas": True}),
        ("PLMS", None, "PNDM", {"skip_prk_steps": True}),
        ("UniPC", None, "UniPCMultistep", {"solver_type": "bh2"}),
        ("euler_k", None, "EulerDiscrete", {"use_karras_sigmas": True}),
        ("HeunDiscreteScheduler", None, "HeunDiscrete", {"use_karras_sigmas": False}),
        ("EulerDiscreteScheduler(timestep_spacing='trailing')", None, "EulerDiscrete", {}),
        (
            "DPMSolverMultistepScheduler(algorithm_type='sde-dpmsolver++', use_karras_sigmas=True)",
            None,
            "DPMSolverMultistep",
            {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
        ),
        ("dpmpp_2m - karras", None, "DPMSolverMultistep", {"use_karras_sigmas": True}),
    ],
)
def test_scheduler_names_give_the_diffusers_class_and_options(name, schedule, kind, settings):
    result = find(name, schedule)
    assert result.diffusers == kind and not result.near
    assert {key: result.options[key] for key in settings} == settings


def test_schedule_names_depend_on_their_program():
    assert "ComfyUI's beta" in find("euler", "beta", "comfyui").near and not find("Euler", "Beta", "a1111").near
    assert "SGM Uniform is used" in find("DPM++ 2M", None, "a1111").near  # without a type it was Uniform there
    assert find("DPM++ 2M").name == "DPM++ 2M SGM Uniform" and not find("DPM++ 2M").near


@given(name=st.sampled_from(NAMES), gap=st.sampled_from(["", " ", "_", "-", " - "]), upper=st.booleans())
def test_scheduler_names_are_read_in_any_spelling(name, gap, upper):
    spelled = name.replace(" ", gap)
    assert find(spelled.upper() if upper else spelled.lower()).name == name
    assert GenerateRequest(prompt="", scheduler=name).scheduler == name


@given(st.text(max_size=40) | st.sampled_from(NAMES).map(lambda name: name + "x"))
def test_unknown_scheduler_names_are_refused_with_valid_suggestions(text):
    try:
        assert named(text).name
    except UserError as error:
        assert "scheduler" in error.message and "\n" not in error.message
        fix = error.hint.removeprefix("Nearest: ").removesuffix(".")
        assert error.hint.startswith("For example") or all(find(name) for name in fix.split(", "))


@pytest.mark.parametrize("wrong", [3, True, ["Euler"], "\ud800", "Euler\x1b[31m!", "x" * 5000, " "])
def test_invalid_scheduler_values_are_refused(wrong):
    with pytest.raises(UserError, match="scheduler") as refused:
        GenerateRequest(prompt="a", scheduler=wrong)
    assert str(refused.value).isascii() or "…" in str(refused.value)
    assert len(str(refused.value)) < 300


def test_few_step_schedulers_refuse_more_than_50_steps():
    assert GenerateRequest(prompt="a", scheduler="LCM", steps=50).scheduler == "LCM"
    for options in ({"scheduler": "tcd"}, {"fast": "<me/lcm>"}):
        with pytest.raises(UserError, match="steps must be at most 50"):
            GenerateRequest(prompt="a", steps=51, **options)
    GenerateRequest(prompt="a", steps=51, fast="<me/lcm>", scheduler="Euler a")


# --- sigmas -----------------------------------------------------------------------------------------------------------

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
TABLE = np.sqrt(1 / np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2) - 1)
LOWEST, HIGHEST = TABLE[0], TABLE[-1]


def at(timesteps):
    """Sigmas between the table's, interpolated as k-diffusion does."""
    return np.exp(np.interp(timesteps, np.arange(1000), np.log(TABLE)))


def karras(n):
    return (HIGHEST ** (1 / 7) + np.linspace(0, 1, n) * (LOWEST ** (1 / 7) - HIGHEST ** (1 / 7))) ** 7


def beta(n):
    from scipy.stats import beta

    return LOWEST + beta.ppf(1 - np.linspace(0, 1, n), 0.6, 0.6) * (HIGHEST - LOWEST)


SIGMAS = {  # as A1111's `sd_schedulers.py` and ComfyUI's `samplers.py` compute them
    "Uniform": lambda n: at(np.linspace(999, 0, n)),
    "Karras": karras,
    "Exponential": lambda n: np.exp(np.linspace(np.log(HIGHEST), np.log(LOWEST), n)),
    "SGM Uniform": lambda n: at(np.linspace(999, 0, n + 1)[:-1]),
    "Simple": lambda n: np.array([TABLE[-(1 + int(i * 1000 / n))] for i in range(n)]),
    "DDIM": lambda n: TABLE[np.arange(1, 1000, 1000 // n)[:n][::-1]],
    "Beta": beta,
}


@pytest.mark.parametrize("steps", [5, 20, 33])
@pytest.mark.parametrize("name", [name for name in NAMES if find(name).sampler in ("Euler", "DPM++ 2M", "DEIS")])
def test_sigmas_match_a1111_and_comfyui(name, steps):
    scheduler = named(name)
    sampler = make_scheduler(CONFIG | {"timestep_spacing": "leading", "use_karras_sigmas": True}, scheduler)
    sampler.set_timesteps(steps)
    sigmas = sampler.sigmas.double().numpy()
    assert len(sigmas) == steps + 1 and sigmas[-1] < LOWEST * 1.001
    # diffusers takes whole timesteps, one of which is 5 % of a sigma at the low end.
    close = 0.05 if scheduler.schedule in ("Uniform", "SGM Uniform", "Simple") else 1e-4
    np.testing.assert_allclose(sigmas[:-1], SIGMAS[scheduler.schedule](steps), rtol=close)


# --- images -----------------------------------------------------------------------------------------------------------

STEPS, SIDE, SEED = 4, 64, 3
EACH = [f"{sampler.name} {sampler.default}".strip() if sampler.schedules else sampler.name for sampler in SAMPLERS]


@functools.cache
def stock(folder):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module", params=["sd1", "sd2 v", "tiny"])
def model(request, tmp_path_factory):
    """(folder, base)"""
    if request.param == "tiny":
        from sdpersonal.models.loading import built_in_folder

        return built_in_folder(), load_base("tiny", "cpu")
    folder = save_narrow(request.param, tmp_path_factory.mktemp("schedulers") / "model")
    return folder, load_base(str(folder), "cpu")


@pytest.fixture
def sd1(model):
    if model[1].kind != "sd1":
        pytest.skip("with one model is enough")
    return model


def ours(base, monkeypatch, **options):
    """Latents that a request ends with."""
    ends, real = [], base.decode
    with monkeypatch.context() as patched:
        patched.setattr(base, "decode", lambda latents: ends.append(latents) or real(latents))
        common = {"num_images": 1, "seed": SEED, "steps": STEPS, "size": f"{SIDE}x{SIDE}"}
        common |= {"guidance": 3.0, "rescale": 0.0}
        images = list(Generator(base).generate(GenerateRequest(**({"prompt": "a red umbrella"} | common | options))))
    return torch.cat(ends), images


def scheduler_of(base, name):
    """As a user of diffusers makes it; betas with zero terminal SNR as we hand them over."""
    import diffusers

    scheduler = named(name)
    if base.kind == "tiny":
        return base.make_scheduler(scheduler)
    kind = getattr(diffusers, f"{scheduler.diffusers}Scheduler")
    return kind.from_config(base.scheduler_config, **scheduler.options)


def beginning(base):
    """A seed's first noise, and the generator behind it, which pipelines draw on with."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(base.latent_shape(SIDE, SIDE), generator=generator)[None], [generator]


def eta(name):
    """TCD's own (its authors' choice) in place of the pipelines', which is 0."""
    return {"eta": 0.3} if name == "TCD" else {}


COMMON = {"negative_prompt": "", "guidance_scale": 3.0, "num_inference_steps": STEPS, "output_type": "latent"}


def close(item, other):
    scale = max(1.0, float(other.abs().max()))  # random weights may lead anywhere
    assert torch.isfinite(other).all()
    assert (item - other).abs().max() < 1e-4 * scale


@pytest.mark.parametrize("name", EACH)
def test_images_match_the_diffusers_pipeline(model, name, monkeypatch):
    folder, base = model
    name = "Heun Karras" if base.kind == "tiny" and name == "Heun Uniform" else name
    pipe = stock(folder)
    pipe.scheduler = scheduler_of(base, name)
    noise, generator = beginning(base)
    options = {"generator": generator, "height": SIDE, "width": SIDE} | eta(name)
    reference = pipe("a red umbrella", latents=noise, **COMMON, **options).images
    made, (image,) = ours(base, monkeypatch, scheduler=name)
    close(made, reference)
    assert image.recipe.scheduler == named(name).name
    assert image.recipe.sampler == type(pipe.scheduler).__name__.removesuffix("Scheduler")


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(tmp_path / "start.png")
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, (0, 0, SIDE // 2, SIDE))
    mask.save(tmp_path / "mask.png")
    return tmp_path / "start.png"


@pytest.mark.parametrize("inpainting", [False, True])
@pytest.mark.parametrize("name", EACH)
def test_img2img_and_inpainting_match_the_diffusers_pipelines(sd1, name, inpainting, photo, monkeypatch):
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline

    folder, base = sd1
    kind = StableDiffusionInpaintPipeline if inpainting else StableDiffusionImg2ImgPipeline
    pipe = kind.from_pipe(stock(folder))
    pipe.scheduler = scheduler_of(base, name)
    latents = base.encode(np.array(Image.open(photo))[None]).mean
    noise, generator = beginning(base)
    skipped = STEPS // 2 * pipe.scheduler.order
    if name.startswith("LMS"):  # which diffusers integrates with the coefficients of slopes that it has not
        step, orders = pipe.scheduler.step, itertools.count(1)
        pipe.scheduler.step = lambda *args, **options: step(*args, order=min(4, next(orders)), **options)

    def begun(*_, **__):  # diffusers would draw the posterior and the noise with one generator
        start = pipe.scheduler.add_noise(latents, noise, pipe.scheduler.timesteps[skipped : skipped + 1])
        return (start, noise, latents) if inpainting else start

    monkeypatch.setattr(pipe, "prepare_latents", begun)
    extra, calls = {"strength": 0.5, "image": Image.open(photo), "generator": generator} | eta(name), {}
    if inpainting:
        mask = photo.with_name("mask.png")
        extra |= {"mask_image": Image.open(mask), "height": SIDE, "width": SIDE}
        calls = {"mask": mask}
        # What a UNet of nine channels would be given; encoding it draws from the generator.
        monkeypatch.setattr(pipe, "_encode_vae_image", lambda *_, **__: latents)
    reference = pipe("a red umbrella", **COMMON, **extra).images
    made, _ = ours(base, monkeypatch, scheduler=name, init_image=photo, strength=0.5, **calls)
    close(made, reference)


def test_lms_with_an_init_image_starts_like_euler(sd1, photo, monkeypatch):
    """With one slope a linear multistep method is Euler's, wherever in the schedule it begins."""
    _, base = sd1
    calls = {"start": photo, "change": 0.1, "steps": 10}
    item, two = (ours(base, monkeypatch, scheduler=name, **calls)[0] for name in ("LMS", "Euler"))
    close(item, two)


def test_the_default_scheduler_by_name_gives_the_same_image(model, monkeypatch):
    _, base = model
    name = "DDIM" if base.kind == "tiny" else "DPM++ 2M Karras"
    assert torch.equal(ours(base, monkeypatch)[0], ours(base, monkeypatch, scheduler=name)[0])


@pytest.mark.parametrize("name", ["Euler a", "DPM2 a Karras", "DPM++ 2M SDE Karras", "DDPM", "SA Solver", "LCM"])
def test_stochastic_noise_does_not_depend_on_the_batch(sd1, name, monkeypatch):
    """Whatever is drawn beside it; other seeds give other noise, the same seed the same."""
    _, base = sd1
    together, _ = ours(base, monkeypatch, scheduler=name, num_images=3, seed=SEED - 1)
    alone, _ = ours(base, monkeypatch, scheduler=name)
    close(together[1:2], alone)
    assert torch.equal(ours(base, monkeypatch, scheduler=name)[0], alone)
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize("change", [1.0, 0.5, 0.01])
@pytest.mark.parametrize("name", ["Euler", "Heun", "DPM2 a", "PLMS", "DPM++ 2S"])
def test_predictions_are_counted_and_progress_follows_the_steps(sd1, name, change):
    _, base = sd1
    sampling = SamplingConfig(5, 1.0, strength=change, scheduler=named(name))
    row, progresses, counted = StepConditioning(base.encode_captions([["a"]])), [], []
    noise, _ = beginning(base)
    with base.exclusive():
        denoise(
            base,
            lambda progress, _: progresses.append(progress) or row,
            noise,
            sampling,
            seeds=(SEED,),
            on_step=counted.append,
        )
    assert counted == list(range(1, sampling.num_predictions + 1))
    taken = {1.0: 5, 0.5: 2, 0.01: 1}[change]
    twice = name in ("Heun", "DPM2 a")
    assert len(counted) == (2 * taken - 1 if twice else taken + 1 if name == "PLMS" else taken)
    steps = [round(progress * 5 - 0.5) for progress in progresses]
    first = 5 - taken - (name == "PLMS" and change < 1)  # which begins a noise level earlier then, in diffusers too
    assert steps == sorted(steps) and set(steps) == set(range(first, 5))
    if twice:
        assert [steps.count(step) for step in range(5 - taken, 5)] == [2] * (taken - 1) + [1]


def test_progress_counts_the_predictions_of_both_passes(sd1, monkeypatch):
    _, base = sd1
    output = []
    request = GenerateRequest(
        prompt="a", num_images=2, steps=3, size="64x64", guidance=1.0, scheduler="Heun", hires_scale=1.25, strength=0.7
    )
    list(Generator(base).generate(request, progress=lambda done, total: output.append((done, total))))
    assert output == [(i, 5 + 3) for i in range(1, 9)]


@pytest.mark.parametrize("name", [*(name for name in NAMES if "Beta" in name), "Heun", "Heun Simple", "Heun DDIM"])
def test_schedulers_unfit_for_zero_terminal_snr_are_refused(tiny, name):
    with pytest.raises(UserError, match="cannot be used with this base"):
        list(Generator(tiny).generate(GenerateRequest(prompt="a", num_images=1, steps=2, scheduler=name)))
    with pytest.raises(UserError, match="steps must be 1 or at least 3"):
        list(Generator(tiny).generate(GenerateRequest(prompt="a", num_images=1, steps=2, scheduler="DPM2 a")))


NUMBERS = [(False, 1), (False, 147), (True, 1), (True, 7)]  # whether the last noise level has no signal, and steps
OTHERS = sorted({(zero_snr, steps) for zero_snr in (False, True) for steps in (1, 2, 7, 147)} - {*NUMBERS})


@pytest.mark.parametrize(
    "zero_snr, steps", [*NUMBERS, *(pytest.param(*number, marks=pytest.mark.thorough) for number in OTHERS)]
)
def test_every_scheduler_gives_valid_timesteps_for_any_step_count(tiny, zero_snr, steps):
    """Whatever diffusers rounds: timesteps within the model's, sigmas finite, as many predictions as were announced."""
    config = tiny.scheduler_config if zero_snr else CONFIG
    for scheduler in (*SCHEDULERS, *map(named, NEAR)):
        if steps > (scheduler.max_steps or steps):
            continue
        try:
            check_scheduler(config, scheduler, steps)
        except UserError:
            continue
        sampler = make_scheduler(config, scheduler)
        sampler.set_timesteps(steps)
        assert len(sampler.timesteps) == scheduler.predictions(steps)
        assert sampler.timesteps.min() >= 0 and sampler.timesteps.max() <= 999
        assert torch.isfinite(getattr(sampler, "sigmas", torch.zeros(1))).all()


# --- on a card --------------------------------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Records what would wait for a card, for which the meta device stands: numbers that are read from it, and copies
    that are not asynchronous. What torch copies by itself, such as indices on the CPU, is among them."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [item for item in tree_iter((args, kwargs)) if isinstance(item, torch.Tensor)]
        on_card = any(item.device.type == "meta" for item in tensors)
        on_cpu = any(item.device.type == "cpu" and item.ndim for item in tensors)
        is_sent = not on_card and torch.device(kwargs.get("device") or "cpu").type == "meta" and bool(tensors)
        is_asynchronous = kwargs.get("non_blocking") or args[2:] == (True,)  # of `_to_copy` and `copy_`
        if not is_asynchronous and (is_sent or (on_card and (on_cpu or func.overloadpacket in WAITING))):
            self.calls.append(func)
        return func(*args, **kwargs)


WAITING = {getattr(torch.ops.aten, name) for name in ("nonzero", "_linalg_solve_ex", "linalg_solve", "masked_select")}
WAITING |= {torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero, torch.ops.aten.equal}


class ModelOnCard:
    """As much of a model as `denoise` needs, with latents that are nowhere."""

    device = torch.device("meta")

    def __init__(self, config):
        self.scheduler_config = config
        self.schedule = NoiseSchedule(torch.ones(1000, device="meta"), config.get("prediction_type", "epsilon"))
        self.replayer = self

    def predict(self, noisy, t, conditioning):
        assert noisy.device == t.device == self.device and t.shape == (len(noisy),)
        return torch.empty_like(noisy)


@pytest.mark.parametrize(("zero_snr", "masked"), [(False, True), (True, False)])
def test_no_step_waits_for_the_gpu(tiny, monkeypatch, zero_snr, masked):
    """Every sampler once: its schedules differ in their numbers only."""
    create = torch.tensor

    def counted(data, *args, **kwargs):
        """On the meta device torch drops the numbers, so that nothing is copied there."""
        if torch.device(kwargs.get("device") or "cpu").type == "meta":
            created.append(data)
        return create(data, *args, **kwargs)

    created = []
    monkeypatch.setattr(torch, "tensor", counted)
    model = ModelOnCard(dict(tiny.scheduler_config if zero_snr else CONFIG))
    noise = torch.empty(2, 4, 8, 8, device="meta")
    init = InitLatents(torch.empty(1, 4, 8, 8, device="meta"), torch.empty(1, 1, 8, 8, device="meta"))
    conditioning = StepConditioning(Conditioning(torch.empty(4, 77, 8, device="meta")))
    for scheduler in (None, *(named(f"{sampler.name} {sampler.default}") for sampler in SAMPLERS)):
        try:
            check_scheduler(model.scheduler_config, scheduler, 5)
        except UserError:
            continue
        config = SamplingConfig(5, 5.0, strength=0.7 if masked else 1.0, scheduler=scheduler)
        built = make_scheduler(model.scheduler_config, scheduler)
        monkeypatch.setattr(model, "make_scheduler", lambda scheduler, built=built: built, raising=False)
        waits, calls = Waits(), []
        with waits, torch.no_grad():
            latents = denoise(
                model,
                lambda *_: conditioning,
                noise,
                config,
                init if masked else None,
                seeds=(1, 2),
                on_step=lambda number, calls=calls, waits=waits: calls.append(len(waits.calls)),
            )
        name = scheduler.name if scheduler else "default"
        assert latents.shape == noise.shape and latents.device == noise.device, name
        assert latents.dtype == torch.float32 and len(calls) == config.num_predictions, name
        assert waits.calls == created == [], name


# --- clip skip --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def skipping(request, tmp_path_factory):
    folder = save_narrow(request.param, tmp_path_factory.mktemp("skipping") / "model")
    return folder, load_base(str(folder), "cpu")


def test_clip_skip_matches_diffusers(skipping, monkeypatch):
    """diffusers skips in the prompt alone; here and in A1111 the negative prompt is read likewise."""
    from diffusers import StableDiffusionXLPipeline

    folder, base = skipping
    pipe = StableDiffusionXLPipeline.from_pretrained(folder) if base.kind == "sdxl" else stock(folder)
    pipe.set_progress_bar_config(disable=True)
    # diffusers 0.42 looks for the final norm where transformers had it before version 5; no module of its own.
    object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)
    before, _ = ours(base, monkeypatch, negative="snow")
    for skip in (1, 2):
        pipe.scheduler = base.make_scheduler()
        embeds = {}
        for prefix, text in (("", "a red umbrella"), ("negative_", "snow")):
            encoded = pipe.encode_prompt(
                text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False, clip_skip=skip - 1
            )
            embeds[f"{prefix}prompt_embeds"] = encoded[0]
            if base.kind == "sdxl":
                embeds[f"{prefix}pooled_prompt_embeds"] = encoded[2]
        options = {name: value for name, value in COMMON.items() if name != "negative_prompt"}
        reference = pipe(latents=beginning(base)[0], height=SIDE, width=SIDE, **embeds, **options).images
        made, (image,) = ours(base, monkeypatch, clip_skip=skip, negative="snow")
        close(made, reference)
        assert image.recipe.clip_skip == skip
        assert torch.equal(made, before) == (skip == 1)
    most = 2  # both encoders of the narrow models have as many layers; SDXL reads the last but one of three
    with pytest.raises(UserError, match=rf"clip_skip must be at most {most} for this base, got 3.\n.*1 skips none"):
        ours(base, monkeypatch, clip_skip=3)


def test_prompt_encodings_are_cached_per_clip_skip(skipping):
    _, base = skipping
    generator, common = (
        Generator(base),
        {"prompt": "a duck", "num_images": 1, "steps": 1, "size": "64x64", "guidance": 1.0},
    )

    def pixels(skip):
        (image,) = generator.generate(GenerateRequest(**common, clip_skip=skip))
        return np.array(image.image)

    item, two, again = pixels(1), pixels(2), pixels(1)
    assert np.array_equal(item, again) and not np.array_equal(item, two)


@pytest.mark.parametrize("wrong", [0, 13, -1, 1.5, "2", True, None])
def test_clip_skip_outside_1_to_12_is_refused(wrong):
    with pytest.raises(UserError, match="clip_skip must be a whole number from 1 to 12"):
        GenerateRequest(prompt="a", clip_skip=wrong)


# --- recipes ----------------------------------------------------------------------------------------------------------

FIELDS = {
    "sdpersonal": "0.1.0",
    "prompt": "a duck",
    "seed": 7,
    "steps": 25,
    "guidance": 7.5,
    "size": "512x640",
    "sampler": "EulerDiscrete",
    "base": {"name": "sd15", "kind": "sd1", "sha256": "a" * 64},
}


@given(st.sampled_from([*NAMES, *NEAR]), st.integers(1, 12))
def test_recipe_and_infotext_keep_scheduler_and_clip_skip(name, skip):
    recipe = Recipe(**FIELDS, scheduler=name, clip_skip=skip)
    assert (recipe.request().scheduler, recipe.request().clip_skip) == (name, skip)
    facts = dict(part.split(": ", 1) for part in format_infotext(recipe).splitlines()[-1].split(", ") if ": " in part)
    assert find(facts["Sampler"], facts.get("Schedule type"), "a1111").name == name
    assert facts.get("Clip skip", "1") == str(skip)


def test_old_recipes_use_the_default_scheduler():
    old = Recipe(**FIELDS)
    assert (old.scheduler, old.request().scheduler, old.request().clip_skip) == ("", None, 1)
    for wrong in ({"scheduler": "no such"}, {"scheduler": 3}, {"clip_skip": 99}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Recipe(**FIELDS, **wrong)


def test_names_without_a_counterpart_have_a_reason():
    assert all(reason and not reason.endswith(".") for reason in NO_COUNTERPART.values())
    assert all(not find(name) for name in NO_COUNTERPART)


def test_the_documentation_contains_the_scheduler_table():
    """`table()` writes it."""
    assert table() in (ROOT / "docs" / "schedulers.md").read_text()


def test_a_grid_varies_scheduler_and_clip_skip():
    from sdpersonal.playground.xyz_grid import XyzGridRequest

    sheet = XyzGridRequest(prompt="a cat", x="scheduler: none, euler_ancestral", y="clip-skip: 1..2")
    calls = [(cell.request.scheduler, cell.request.clip_skip) for cell in sheet.cells]
    assert calls == [(None, 1), ("Euler a", 1), (None, 2), ("Euler a", 2)]
    with pytest.raises(UserError, match="scheduler 'eulr' is unknown"):
        XyzGridRequest(prompt="a cat", x="scheduler: eulr, Euler")
