"""Paint the images of every caption with a diffusion model (paper, section 3.2).

Reads the curated captions and writes WebDataset shards to `<run>/images`. A caption gets the same
images in every run with the same model, settings and seed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt

from pipelines.options import runs_here
from pipelines.runner import run_stage
from transforms.core import storage
from transforms.core.config import Config, Place, fingerprint_fields, no_fingerprint
from transforms.core.fingerprint import Fingerprint
from transforms.core.references import without_hashes, written_fields
from transforms.core.shard_reader import CommittedShards
from transforms.core.stages import Stage, stage_folder
from transforms.engines.image.base import GeneratorConfig, ImageEngineSpec
from transforms.engines.image.registry import DEFAULT_ENGINE, AnyImageEngineConfig
from transforms.engines.model_refs import Model
from transforms.images.caption_reader import CaptionRows
from transforms.images.encoding import EncodingConfig
from transforms.images.producer import CODE_VERSION, ImagesProducer, PaintPlan

_MOVED_KEYS = (
    *("device", "dtype", "batch_size", "vae_slicing", "channels_last"),
    *("compile", "compile_cache", "batch_timeout_s"),
)
"""Keys of the section `engine` that earlier versions had in the section `generator`."""


class ImagesConfig(Config):
    """Settings of the images stage."""

    moved: ClassVar[dict[str, str]] = {
        **{f"generator.{key}": f"engine.{key}" for key in _MOVED_KEYS},
        "jpeg_quality": "encoding.quality",
        "encoder_threads": "encoding.threads",
    }

    run: Place = no_fingerprint()
    """Folder or URL of the run."""
    captions: Place | None = no_fingerprint(None)
    """Folder or URL of the captions to paint; null takes `<run>/captions`."""
    seed: int = 0
    """Seed of every random choice."""
    model: str
    """Hub id, folder in diffusers' format, or `builtin:tiny-sd`; paper: Stable Diffusion 1.5."""
    revision: str | None = no_fingerprint(None)
    """Branch, tag or commit of a hub id; the commit that it names is part of the fingerprint."""
    captions_per_shard: PositiveInt = 250
    """Captions of an image shard: the unit of work, retry and commit; it should take minutes."""
    images_per_caption: PositiveInt = 4
    """Images painted for each caption; paper: 4."""
    strict_versions: bool = no_fingerprint(False)
    """Refuse to continue with another major or minor version of a library that may change the
    output, such as torch; otherwise warn."""
    engine: AnyImageEngineConfig = DEFAULT_ENGINE
    """What runs the model."""
    generator: GeneratorConfig = GeneratorConfig()
    """Which images are painted."""
    encoding: EncodingConfig = EncodingConfig()
    """How images are stored."""
    max_repaints: NonNegativeInt = 3
    """Times that an unusable image is painted again before its caption becomes a dead letter."""
    min_contrast: Annotated[int, Field(ge=0, le=255)] = 8
    """An image is blank if no colour channel has a range of this many levels, of 256."""


CONFIG = ImagesConfig


def run(config: ImagesConfig, flags: Sequence[str]) -> None:
    """Paint all images that are not painted yet.

    Args:
        config: Settings of the stage.
        flags: Flags for Beam.
    """
    paint(config, stage(config), flags)


def paint(config: ImagesConfig, planned: Stage, flags: Sequence[str]) -> None:
    """Run the images stage or a retry of it.

    Raises:
        ConfigError: The device is missing.
        MissingFileError: The captions are not complete.
    """
    assert isinstance(planned.producer, ImagesProducer)
    captions = planned.producer.captions_folder

    def prepare() -> None:
        if runs_here(flags):
            config.engine.check_device()
        CommittedShards.open_complete(captions)

    run_stage(planned, flags, prepare)


def stage(config: ImagesConfig, retry: int = 0) -> Stage:
    """Return the images stage of a run whose captions are complete.

    Args:
        config: Settings of the stage.
        retry: Number of a retry of its dead letters, 0 for the stage itself. A retry is a stage
            with its captions in its own folder, and with other seeds: the same seeds would only
            paint the same blank image again.

    Raises:
        ConfigError: The model does not exist.
        MissingFileError: The captions are not complete.
    """
    folder = stage_folder(config.run, "images")
    captions = config.captions or storage.join(config.run, "captions")
    if retry:
        folder = folder.retry(retry)
        captions = storage.join(folder.url, "captions")
    rows = CaptionRows.open(captions)
    model = config.engine.find_model(config.model, config.revision, builtin_model)
    fields = {
        **_fields(config),
        "model_identity": model.identity,
        "captions_index_sha256": rows.index_sha256,
        "code_version": CODE_VERSION,
    }
    digest = generator_digest(config, model)
    if retry:
        fields["retry"] = retry
        digest = Fingerprint({"generator": digest, "retry": retry}).digest
    plan = PaintPlan(
        captions_per_shard=config.captions_per_shard,
        images_per_caption=config.images_per_caption,
        generator_digest=digest,
        settings=without_hashes(written_fields(_settings(config, model), config.written())),
        encoding=config.encoding,
        max_repaints=config.max_repaints,
        min_contrast=config.min_contrast,
        batch_timeout_s=config.engine.batch_timeout_s,
    )
    return Stage(
        folder=folder,
        fingerprint=Fingerprint(fields),
        config=config.written(),
        num_shards=-(-rows.num_captions // config.captions_per_shard),
        num_records=rows.num_captions,
        producer=ImagesProducer(
            rows, ImageEngineSpec(model, config.engine, config.generator), plan
        ),
        metadata={
            "images_per_caption": str(config.images_per_caption),
            "generator_digest": digest,
        },
        libraries=(*config.engine.libraries, "pillow", "webdataset"),
        strict_versions=config.strict_versions,
    )


def builtin_model(name: str) -> Path | None:
    """Return the folder of a built-in model, None if there is no such model.

    Workers call this too: they may have these files in another place than the launching process.

    Args:
        name: Name of the model without `builtin:`, for instance "tiny-sd".
    """
    folder = Path(__file__).parent / "data" / name.replace("-", "_")
    return folder if name and (folder / "model_index.json").is_file() else None


def generator_digest(config: ImagesConfig, model: Model) -> str:
    """Return the identity of the generator, on which the seeds of its images depend.

    It does not depend on the captions or their cut into shards and batches, nor on settings whose
    effects two runs may want to compare on the same noise.
    """
    settings = _settings(config, model)
    names = ("model_identity", "num_steps", "guidance", "scheduler", "size")
    own = {name: settings[name] for name in names}
    seed = {"seed": config.seed, "code_version": CODE_VERSION}
    return Fingerprint({**own, **config.engine.seed_settings(), **seed}).digest


def _settings(config: ImagesConfig, model: Model) -> dict[str, Any]:
    """Return the settings that are stored with every image set."""
    return {
        "model": model.name,
        "model_identity": model.identity,
        **fingerprint_fields(config.generator),
        **config.engine.settings(),
    }


def _fields(config: ImagesConfig) -> dict[str, Any]:
    """Return the settings that change the images, by their names in the fingerprint.

    The names are those of the first version, which had no section for the engine.
    """
    fields = fingerprint_fields(config)
    return {
        **{key: value for key, value in fields.items() if not key.startswith("engine.")},
        **{f"generator.{key}": value for key, value in config.engine.settings().items()},
    }
