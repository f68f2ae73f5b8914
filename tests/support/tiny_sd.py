"""Small configs and drawings for tests of tiny-sd."""

from functools import cache

import numpy as np

from pipelines.tiny_sd.autoencoder import AutoencoderConfig
from pipelines.tiny_sd.composites import Composer
from pipelines.tiny_sd.drawings import Drawing
from pipelines.tiny_sd.networks import DiffusionConfig
from pipelines.tiny_sd.text_encoder import TextConfig

CONCEPTS = ["cat", "dog"]
AUTOENCODER = AutoencoderConfig(
    channels=(8, 8, 8, 8),
    latent_channels=4,
    num_steps=6,
    num_decoder_steps=1,
    num_crop_steps=3,
    batch_size=4,
)
DIFFUSION = DiffusionConfig(
    channels=(16, 16),
    layers_per_block=1,
    time_width=16,
    num_cached=16,
    num_steps=6,
    num_first_steps=4,
    second_share=0.5,
    decay_steps=2,
    batch_size=4,
)
TEXT = TextConfig(vocabulary=600, width=16, num_layers=1, num_heads=2, corpus_size=300)


@cache
def make_composer() -> Composer:
    drawings = []
    for concept, colour in zip(CONCEPTS, ((250, 0, 250), (0, 250, 250)), strict=True):
        rgba = np.empty((80, 80, 4), np.uint8)
        rgba[..., :3], rgba[..., 3] = colour, 255
        drawings.append(Drawing(concept, "noto", rgba))
    return Composer(drawings, CONCEPTS, seed=0)
