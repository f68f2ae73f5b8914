"""Loads a diffusers text-to-image pipeline as configured: sampler, memory layout, compilation.

Only safetensors are read, and nothing of a model's repository is executed. Attention is PyTorch's
`scaled_dot_product_attention` throughout, which diffusers takes by itself.
"""

import os
from typing import TYPE_CHECKING, Any

from transforms.core.errors import ConfigError
from transforms.engines.image.base import GeneratorConfig
from transforms.engines.image.models import ImageModel

if TYPE_CHECKING:
    import torch

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
}
"""diffusers' class behind each sampler that a config may name."""


def load_pipeline(model: ImageModel, config: GeneratorConfig, dtype: "torch.dtype") -> Any:
    """The pipeline on its device, ready to paint.

    Args:
        model: What to load.
        config: How to paint.
        dtype: The torch type that `config.dtype` names.

    Raises:
        ConfigError: The model cannot paint as configured.
    """
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    place = {"revision": model.commit, "local_files_only": model.commit is None}
    try:
        listed = diffusers.DiffusionPipeline.load_config(model.source(), **place)
        # A part that the folder lists as absent, for instance a third text encoder, is left out.
        left_out: dict[str, Any] = {
            name: None for name, part in listed.items() if part == [None, None]
        }
        if "safety_checker" in listed and not config.safety_checker:
            left_out |= {"safety_checker": None, "requires_safety_checker": False}
        pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(
            model.source(), **place, **left_out, dtype=dtype, use_safetensors=True
        )
    except ValueError as error:
        raise ConfigError(
            f"key 'model' has value {model.name!r}, which diffusers cannot load as a "
            f"text-to-image pipeline: {' '.join(str(error).split())[:200]}"
        ) from error
    if config.safety_checker and getattr(pipeline, "safety_checker", None) is None:
        raise ConfigError(
            f"key 'generator.safety_checker' has value True, but {model.name} has no safety "
            "checker: expected False"
        )
    if config.scheduler != "model":
        pipeline.scheduler = _scheduler(model, config, pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(config.device)
    _tune(pipeline, model, config)
    return pipeline


def denoiser(pipeline: Any) -> Any:
    """The network that a sampler calls at every step: a UNet or a transformer; None if neither."""
    return getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)


def _scheduler(model: ImageModel, config: GeneratorConfig, own: Any) -> Any:
    import diffusers

    wanted = getattr(diffusers, SCHEDULERS[config.scheduler])
    if wanted not in own.compatibles:
        raise ConfigError(
            f"key 'generator.scheduler' has value {config.scheduler!r}, which cannot take the "
            f"place of {model.name}'s {type(own).__name__}: expected 'model'"
        )
    return wanted.from_config(own.config)


def _tune(pipeline: Any, model: ImageModel, config: GeneratorConfig) -> None:
    """Settings of speed and memory. They choose kernels, so they may change the last bits."""
    import torch

    network: Any = denoiser(pipeline)
    autoencoder: Any = getattr(pipeline, "vae", None)
    if config.vae_slicing:
        if not hasattr(autoencoder, "enable_slicing"):
            raise ConfigError(
                f"key 'generator.vae_slicing' has value True, but {model.name} has no autoencoder "
                "that can decode images one by one: expected False"
            )
        autoencoder.enable_slicing()
    if config.channels_last:
        for part in filter(None, (network, autoencoder)):
            part.to(memory_format=torch.channels_last)
    if config.compile:
        if config.compile_cache is not None:
            # Inductor looks here for kernels that this or another worker has compiled.
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = config.compile_cache
        for part in filter(None, (network, getattr(autoencoder, "decoder", None))):
            # Shapes never change, so each is compiled for one. Without autotuning, which chooses
            # kernels by the clock: workers with the same card must agree on the bytes.
            part.compile(dynamic=False)
