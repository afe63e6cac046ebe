"""Train a token by textual inversion: a few kB, the model is unchanged. The same as `sdpersonal train
textual-inversion`.

python train_textual_inversion.py --photos examples/photos/cyanotype --token '<me/cyanotype>' --kind style
python train_textual_inversion.py --photos my-duck --token '<me/duck>' --init 'toy duck' --vectors 4 --base sd15
accelerate launch train_textual_inversion.py --photos my-duck --token '<me/duck>' --init 'toy duck' --base sd15
python train_textual_inversion.py --photos my-duck --token '<me/duck>' --init 'toy duck' --base sd15 --resume

Commands for diffusers' textual_inversion*.py work here too: docs/from-diffusers.md.
"""

import sys

from sdpersonal.cli.commands.train import train
from sdpersonal.cli.main import run_command
from sdpersonal.config import TextualInversionSettings

if __name__ == "__main__":
    sys.exit(run_command(train, TextualInversionSettings, sys.argv[1:], "train_textual_inversion.py"))
