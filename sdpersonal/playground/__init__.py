"""Generate many images from one prompt: variations, endless generation and X/Y/Z grids."""
