"""Photos to train on: loaded, decoded, cropped and checked."""
