// What the field's words mean, for the tooltips.

export const TERMS = {
  concept: "What was trained from photos: a thing, a person or a style, with a word of its own for prompts.",
  "negative prompt": "What the image should not show.",
  steps: "How often the noise is reduced. More steps are slower; beyond 30 little changes.",
  "guidance scale": "How closely the image follows the prompt. High values look hard and oversaturated.",
  "guidance rescale": "Reduces the contrast that guidance adds. 0 is off.",
  scheduler: "The method by which the noise is removed, also called sampler.",
  seed: "The number that the noise is made from. The same seed with the same settings gives the same image.",
  "clip skip": "Takes an earlier layer of the text encoder. 1 skips none; many anime models want 2.",
  "hires fix": "Generates the image, enlarges it, and generates over it once more, so that it gains detail.",
  "denoising strength": "How much of the starting image may change: 0.3 keeps its shapes, 0.8 keeps little.",
  compose: "Guides each style by itself and gives each subject a place of its own. Off: all concepts in one prediction.",
  "fast lora": "An LCM or TCD LoRA, with which 6 steps are enough.",
  "class noun": "What the thing is in the most ordinary words: toy duck, woman, watercolour.",
  "learning rate": "How large each step of the training is. Too large and the training fails, too small and nothing is learned.",
  rank: "The size of the LoRA. More holds more detail and makes a larger file.",
  resolution: "The side of the training images in pixels.",
  "prior preservation": "Keeps the class as the model knows it while it learns yours. A step then takes twice as long.",
  loss: "How far the model's predictions are from the photos. It falls quickly at first, then hardly.",
  samples: "Images generated during the training, to see how far it is.",
  "text encoder": "The part of the model that reads the prompt.",
};
