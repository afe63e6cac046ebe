"""Run the commands `train ...`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...config import DreamboothSettings, TextualInversionSettings, TrainingSettings
from .. import batch_training, diffusers_compat
from ..parsing import parse_settings, with_present_names
from ..terminal import discard, is_main_process, print_note, say

_HELP_EPILOG = (
    "The flags of diffusers' training scripts are understood as well; docs/from-diffusers.md lists them. "
    "--concepts-list FILE trains several concepts in turn, with --together N so many of them in one batch."
)


def parse_training(
    settings: type[TrainingSettings], argv: Sequence[str], prog: str
) -> TrainingSettings | batch_training.BatchSettings:
    """Parse the command line of one training, or of several with `--concepts-list`, in our flags or in diffusers'.

    Prints a note for each flag of diffusers that means something else here. Raises UserError.
    """
    parse = settings_parser(settings, prog)
    flags, argv = batch_training.take_list_flags(argv)
    return batch_training.read_batch(flags.path, argv, parse, together=flags.together) if flags.path else parse(argv)


def settings_parser(settings: type[TrainingSettings], prog: str) -> Callable[[Sequence[str]], TrainingSettings]:
    """Return a function that parses a command line in our flags or in diffusers'; it prints each note once."""
    seen_notes: set[str] = set()

    def parse(argv: Sequence[str]) -> TrainingSettings:
        words = with_present_names(settings, argv)
        translation = diffusers_compat.translate(settings, words, diffusers_compat.current_environment())
        for note in translation.notes:
            if note not in seen_notes and is_main_process():
                print_note(note)
            seen_notes.add(note)
        return parse_settings(settings, translation.argv, prog, f"{settings.__doc__}\n\n{_HELP_EPILOG}")

    return parse


def train(settings: TrainingSettings | batch_training.BatchSettings) -> int:
    from ...training import train as train_concept
    from ...training import train_together

    if not isinstance(settings, batch_training.BatchSettings):
        train_concept(settings, log=say)
        return 0
    log = say if is_main_process() else discard
    if settings.together > 1:
        return batch_training.train_all_together(settings, train_together, log)
    return batch_training.train_all(settings, train_concept, log)


COMMANDS = {
    "train dreambooth": (train, DreamboothSettings),
    "train textual-inversion": (train, TextualInversionSettings),
}
