"""Small diffusers folders with random weights, of several architectures.

They paint noise of 32x32 pixels that depends on the caption.
"""

import json
from pathlib import Path
from typing import Any

LETTERS_READ = 24


def write_random_sd(folder: Path, seed: int = 0, flags_above: float | None = None) -> Path:
    """Write a folder with the architecture of Stable Diffusion 1.5; return it.

    Args:
        folder: Folder to create.
        seed: Seed of the weights.
        flags_above: Cosine above which a safety checker flags an image: all images at -2, none at
            2. None adds no checker.
    """
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    tokenizer = letter_tokenizer(folder)
    torch.manual_seed(seed)
    text_encoder = CLIPTextModel(_text_config(len(tokenizer)))
    unet = UNet2DConditionModel(
        **_UNET,
        cross_attention_dim=32,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    StableDiffusionPipeline(
        vae=_autoencoder(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**_DDIM),
        **_checker(flags_above),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def write_random_sdxl(folder: Path) -> Path:
    """Write a folder with the architecture of Stable Diffusion XL (two text encoders)."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = letter_tokenizer(folder)
    torch.manual_seed(0)
    config = _text_config(len(tokenizer))
    unet = UNet2DConditionModel(
        **_UNET,
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        transformer_layers_per_block=(1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    StableDiffusionXLPipeline(
        vae=_autoencoder(),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**_DDIM),
        add_watermarker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def write_random_sd3(folder: Path) -> Path:
    """Write a folder with the architecture of Stable Diffusion 3 (flow matching)."""
    import torch
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextModelWithProjection

    tokenizer = letter_tokenizer(folder)
    torch.manual_seed(0)
    config = _text_config(len(tokenizer))
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        pos_embed_max_size=16,
    )
    StableDiffusion3Pipeline(
        vae=_autoencoder(shift_factor=0.1),
        text_encoder=CLIPTextModelWithProjection(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        text_encoder_3=None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=None,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


_DDIM: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}


def _autoencoder(**changes: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
        sample_size=32,
        **changes,
    )


def _text_config(num_words: int) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=num_words,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=32,
        max_position_embeddings=LETTERS_READ,
        bos_token_id=num_words - 2,
        eos_token_id=num_words - 1,
        pad_token_id=num_words - 1,
    )


def _checker(flags_above: float | None) -> dict[str, Any]:
    """Return the safety checker of a pipeline and its feature extractor."""
    if flags_above is None:
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision = {**layers, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config={}, vision_config=vision, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config)
    torch.nn.init.constant_(checker.concept_embeds_weights, flags_above)
    extractor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    return {"safety_checker": checker, "feature_extractor": extractor}


def letter_tokenizer(folder: Path, max_length: int = LETTERS_READ) -> Any:
    """Return a CLIP tokenizer whose words are single letters; create its folder."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({word: number for number, word in enumerate(words)}))
    merges.write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(vocabulary), str(merges), model_max_length=max_length)
    vocabulary.unlink()
    merges.unlink()
    return tokenizer
