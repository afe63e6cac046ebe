"""List caption templates for training, so that the token is learned as a word and not as a whole prompt.

The wording is our own, in the manner of the templates of textual inversion (Gal et al. 2022, appendix E).
"""

CAPTION_TEMPLATES: dict[str, tuple[str, ...]] = {
    "object": (
        "{}",
        "a photo of {}",
        "a picture of {}",
        "one {}",
        "a good photo of {}",
        "a close view of {}",
        "a photo of {} in its place",
        "here is {}",
    ),
    "person": (
        "{}",
        "a photo of {}",
        "a portrait of {}",
        "a picture of {}",
        "a close view of {}",
        "a good photo of {}",
    ),
    "style": (
        "a picture in the style of {}",
        "a drawing in the style of {}",
        "in the style of {}",
        "a scene in the style of {}",
        "something in the style of {}",
        "a work in the style of {}",
    ),
}

SAMPLE_PROMPTS: dict[str, tuple[str, ...]] = {
    "object": ("a photo of {}", "{} on the beach", "{} in the snow", "{} on a blue background"),
    "person": ("a portrait of {}", "{} on the beach", "{} in the snow", "{} on a blue background"),
    "style": (
        "a cat in the style of {}",
        "a duck in the style of {}",
        "a mushroom in the style of {}",
        "a fish on the beach in the style of {}",
    ),
}
