"""Train a concept by DreamBooth with LoRA: closest likeness. The same as `sdpersonal train dreambooth`.

python train_dreambooth.py --photos examples/photos/teddy-bear --token '<me/teddy>' --class 'teddy bear'
python train_dreambooth.py --photos my-dog --token '<me/rex>' --class dog --base sd15
accelerate launch train_dreambooth.py --photos my-dog --token '<me/rex>' --class dog --base sd15
python train_dreambooth.py --photos my-dog --token '<me/rex>' --class dog --base sd15 --resume

Commands for diffusers' train_dreambooth.py and train_dreambooth_lora*.py work here too: docs/from-diffusers.md.
"""

import sys

from sdpersonal.cli.commands.train import train
from sdpersonal.cli.main import run_command
from sdpersonal.config import DreamboothSettings

if __name__ == "__main__":
    sys.exit(run_command(train, DreamboothSettings, sys.argv[1:], "train_dreambooth.py"))
