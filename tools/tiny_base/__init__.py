"""How the built-in base is made: art, captioned scenes, a small CLIP, an autoencoder, a UNet, figures."""
