"""Loading of a diffusers text-to-image pipeline: sampler, memory layout, compilation.

Only safetensors are read, and no code of a model's repository is executed. Attention is PyTorch's
`scaled_dot_product_attention`, which diffusers uses by default.
"""

import os
from typing import TYPE_CHECKING, Any

from transforms.core.errors import ConfigError
from transforms.engines.image.base import GeneratorConfig
from transforms.engines.image.models import image_model_source
from transforms.engines.model_refs import Model

if TYPE_CHECKING:
    import torch

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
}
"""Value of `generator.scheduler` -> its class in diffusers."""


def load_pipeline(model: Model, generator: GeneratorConfig, dtype: "torch.dtype") -> Any:
    """Load a pipeline on the CPU.

    Args:
        model: The model to load.
        generator: Which images to paint.
        dtype: Type of weights and activations.

    Raises:
        ConfigError: The model cannot paint as configured.
    """
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    place = {"revision": model.commit, "local_files_only": model.commit is None}
    source = image_model_source(model)
    try:
        listed = diffusers.DiffusionPipeline.load_config(source, **place)
        # Parts that the folder lists as absent, for instance a third text encoder, are left out.
        left_out: dict[str, Any] = {
            name: None for name, part in listed.items() if part == [None, None]
        }
        if "safety_checker" in listed and not generator.safety_checker:
            left_out |= {"safety_checker": None, "requires_safety_checker": False}
        pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(
            source, **place, **left_out, dtype=dtype, use_safetensors=True
        )
    except ValueError as error:
        raise ConfigError(
            f"key 'model' has value {model.name!r}, which diffusers cannot load as a "
            f"text-to-image pipeline: {' '.join(str(error).split())[:200]}"
        ) from error
    if generator.safety_checker and getattr(pipeline, "safety_checker", None) is None:
        raise ConfigError(
            f"key 'generator.safety_checker' has value True, but {model.name} has no safety "
            "checker: expected False"
        )
    if generator.scheduler != "model":
        pipeline.scheduler = _scheduler(model, generator.scheduler, pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def denoiser(pipeline: Any) -> Any:
    """Return the network that a sampler calls at every step: a UNet or transformer, else None."""
    return getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)


def decode_one_by_one(pipeline: Any, model: Model) -> None:
    """Let the autoencoder decode the images of a batch one by one.

    Raises:
        ConfigError: The model has no autoencoder that can do this.
    """
    autoencoder: Any = getattr(pipeline, "vae", None)
    if not hasattr(autoencoder, "enable_slicing"):
        raise ConfigError(
            f"key 'engine.vae_slicing' has value True, but {model.name} has no autoencoder "
            "that can decode images one by one: expected False"
        )
    autoencoder.enable_slicing()


def set_channels_last(pipeline: Any) -> None:
    """Store weights with the channels last. Other kernels may change the last bits."""
    import torch

    for part in filter(None, (denoiser(pipeline), getattr(pipeline, "vae", None))):
        part.to(memory_format=torch.channels_last)


def compile_networks(pipeline: Any, cache: str | None) -> None:
    """Compile the networks at their first call. Other kernels may change the last bits.

    Args:
        pipeline: A pipeline on its device.
        cache: Folder for compiled kernels; None for torch's own.
    """
    if cache is not None:
        # Inductor looks here for kernels that any worker has compiled.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.expanduser(cache)
    decoder: Any = getattr(getattr(pipeline, "vae", None), "decoder", None)
    for part in filter(None, (denoiser(pipeline), decoder)):
        # Shapes never change. No autotuning, since it chooses kernels by measured time, and
        # workers with the same card must produce the same bytes.
        part.compile(dynamic=False)


def _scheduler(model: Model, name: str, own: Any) -> Any:
    import diffusers

    wanted = getattr(diffusers, SCHEDULERS[name])
    if wanted not in own.compatibles:
        raise ConfigError(
            f"key 'generator.scheduler' has value {name!r}, which cannot replace "
            f"{model.name}'s {type(own).__name__}: expected 'model'"
        )
    return wanted.from_config(own.config)
