"""What a page shows of a training at a moment: words, a bar, a curve, pictures."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from .... import storage
from ....errors import PersonalError
from ....prompts import show
from ..workspace import House
from .loss_plot import bar, curve
from .run_status import Standing, number
from .training_service import minutes

_LARGEST = 64 << 20  # bytes of a picture or a report
_GB = 1e9


@dataclass(frozen=True)
class Scene:
    """title, words: how it stands; bar, curve: HTML made of numbers; pictures: (file in the page's room, caption);
    score: the verdict so far; stamp: changes with the pictures alone."""

    title: str
    words: str
    bar: str = ""
    curve: str = ""
    pictures: tuple[tuple[str, str], ...] = ()
    score: str = ""
    stamp: str = ""
    prompts: tuple[str, ...] = ()
    report: str = ""


def scene(standing: Standing, house: House, page: str, seen: str = "") -> Scene:
    """seen: the stamp of what the page shows already; its pictures are not copied again."""
    tell = {"starting": _starting, "learning": _learning, "finishing": _finishing, "done": _done}
    title, words, share = tell.get(standing.state, _ended)(standing)
    stamp, found = _pictures(standing)
    stamp = f"{standing.folder.name} {stamp}"
    new = stamp != seen
    return Scene(
        title,
        words,
        bar(share) if standing.running else "",
        curve(standing.points, standing.steps),
        tuple((_copied(path, house, page), caption) for path, caption in found) if new else (),
        _score(standing),
        stamp,
        _prompts(standing, house) if standing.state == "done" else (),
        _report(standing, house, page) if standing.state == "done" and new else "",
    )


def _token(standing: Standing) -> str:
    return show(str(standing.settings.get("token", "")), 150)


def _starting(standing: Standing) -> tuple[str, str, float | None]:
    waited = max(0, round(time.time() - standing.began))
    words = "Loading the base, looking at the photos, trying out a step"
    if cost := _measured(standing):
        words = f"Everything was tried out. {cost}"
    return f"Getting ready to learn {_token(standing)}", f"{words} … ({waited} s)", None


def _learning(standing: Standing) -> tuple[str, str, float | None]:
    left = f"at most about {minutes(standing.left)} left" if standing.left is not None else ""
    words = (
        f"Step {standing.step:,} of at most {standing.steps:,}; {left}. It ends sooner where there is no more to learn."
    )
    if standing.asked:
        words += {"sample": " Pictures come after this step.", "keep": " It ends after this step."}.get(
            standing.asked, ""
        )
    return f"Learning {_token(standing)}", words, standing.step / max(standing.steps, 1)


def _finishing(standing: Standing) -> tuple[str, str, float | None]:
    words = f"Learned, after step {standing.step:,}. Now I choose the best and draw its pictures …"
    return f"Finishing {_token(standing)}", words, None


def _done(standing: Standing) -> tuple[str, str, float | None]:
    took = f", after {minutes(standing.seconds)}" if standing.seconds else ""
    words = f"It is in your library{took}. Write {standing.token} in a prompt, or try one of these."
    return f"{standing.token} is ready", words, None


def _ended(standing: Standing) -> tuple[str, str, float | None]:
    if standing.can_go_on:
        next_ = f"It is saved up to step {standing.step:,} of {standing.steps:,}: Go on takes it up there."
    else:
        next_ = "Nothing was added. Press Go on to try once more, or Throw away and start with other settings."
    title = f"{_token(standing)} is not finished"
    return title, f"{plain_words(standing.said)}\n{next_}", None


def plain_words(said: str) -> str:
    """A trainer's words without the advice for its command line that the page has buttons for."""
    lines = [line for line in said.splitlines() if line.strip() not in ("Add --resume to go on.",)]
    return "\n".join(lines)


def _measured(standing: Standing) -> str:
    held, seconds = number(standing.cost.get("held")), number(standing.cost.get("seconds"))
    if not held or not seconds:
        return ""
    return f"At most {minutes(seconds)}, with {held / _GB:.1f} GB of memory"


def _trials(standing: Standing) -> list:
    from ....training.validation import read_trials

    return read_trials(standing.folder)


def _pictures(standing: Standing) -> tuple[str, list[tuple[Path, str]]]:
    """The newest sample pictures beside the class noun's, or the finished concept's."""
    if standing.state == "done":
        found = [(standing.folder / "samples.png", f"{standing.token} in its first pictures")]
        stamp = "done"
    else:
        drawn = sorted((standing.folder / "trials").glob("step-*.png"))
        if not drawn:
            return "", []
        step = int(drawn[-1].stem.removeprefix("step-"))
        found = [(drawn[-1], f"After step {step:,}")]
        stamp = f"{step} {drawn[-1].stat().st_mtime_ns}"
    noun = standing.settings.get("class_noun") or standing.settings.get("init") or "the class"
    plain = standing.folder / "trials" / "class-noun.png"
    found.append((plain, f"For comparison: any {show(str(noun), 40)}"))
    return stamp, [(path, caption) for path, caption in found if path.exists()]


def _copied(path: Path, house: House, page: str) -> str:
    run = path.parent.parent if path.parent.name == "trials" else path.parent
    place = storage.make_folder(house.room(page) / run.name)
    data = storage.read_bytes(path, _LARGEST)
    target = place / f"{path.stem}-{storage.sha256(data)[:8]}{path.suffix}"
    if not target.exists():
        storage.write_bytes(target, data)
    return str(target)


def _score(standing: Standing) -> str:
    from ....evaluation import in_figures, verdict
    from ....training.validation import best_of

    best = best_of(_trials(standing))
    if best is None:
        return ""
    noun = str(standing.settings.get("class_noun") or standing.settings.get("init") or "the class")
    when = "" if standing.state == "done" else f"So far (step {best.step:,} is the best): "
    said = " ".join(show(line, 400) for line in verdict(best.scores, noun))
    return f"{when}{said}\n{in_figures(best.scores)}"


def _prompts(standing: Standing, house: House) -> tuple[str, ...]:
    from ....prompts import Token

    try:
        return house.library.find(Token.parse(standing.token)).card.prompts[:4]
    except PersonalError:  # removed or renamed since
        return ()


def _report(standing: Standing, house: House, page: str) -> str:
    path = standing.folder / "report.html"
    return _copied(path, house, page) if path.exists() else ""
