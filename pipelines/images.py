"""Paint the images of every caption with a diffusion model (paper, section 3.2).

Reads the curated captions and writes WebDataset shards to `<run>/images`. The same caption gets the
same images in any run with the same model, settings and seed.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt

from pipelines.options import runs_here
from pipelines.runner import is_complete, run_stage
from transforms.core import storage
from transforms.core.config import Config, fingerprint_fields, no_fingerprint
from transforms.core.errors import MissingFileError, UnfinishedError
from transforms.core.fingerprint import Fingerprint
from transforms.core.stages import STAGES, Stage, stage_folder
from transforms.engines.image.base import GeneratorConfig
from transforms.engines.image.diffusers import DiffusersSpec, check_device
from transforms.engines.image.models import ImageModel, find_model
from transforms.images.caption_reader import CaptionRows
from transforms.images.encoding import EncodingConfig
from transforms.images.producer import CODE_VERSION, ImagesProducer, PaintPlan


class ImagesConfig(Config):
    """Settings of the images stage."""

    run: str = no_fingerprint()
    """Folder or URL of the run."""
    captions: str | None = no_fingerprint(None)
    """Folder or URL of the captions to paint; default `<run>/captions`."""
    seed: int = 0
    """Of every random choice."""
    model: str
    """Hub id, folder in diffusers' format, or `builtin:tiny-sd`; paper: Stable Diffusion 1.5."""
    revision: str | None = no_fingerprint(None)
    """Branch, tag or commit of a hub id; the commit behind it is part of the fingerprint."""
    captions_per_shard: PositiveInt = 250
    """Captions of an image shard: the unit of work, of retry and of commit; aim for minutes."""
    images_per_caption: PositiveInt = 4
    """Images painted for each caption; paper: 4."""
    generator: GeneratorConfig = GeneratorConfig()
    """How images are painted."""
    encoding: EncodingConfig = EncodingConfig()
    """How images are stored."""
    max_repaints: NonNegativeInt = 3
    """Times that an unusable image is painted again before its caption is given up."""
    min_contrast: Annotated[int, Field(ge=0, le=255)] = 8
    """An image is blank if no colour channel spans as many of 256 levels."""


CONFIG = ImagesConfig


def run(config: ImagesConfig, flags: Sequence[str]) -> None:
    """Paint what is not painted yet; `flags` are Beam's."""
    planned = stage(config)
    if runs_here(flags) and not is_complete(planned):
        check_device(config.generator.device)
    run_stage(planned, flags)


def stage(config: ImagesConfig, retry: int = 0) -> Stage:
    """The images stage of a run whose captions are complete.

    Args:
        config: Its settings.
        retry: The number of a retry of its dead letters, a stage of its own: its captions stand in
            its folder, and its seeds are others, so that no blank image is painted again as it was.

    Raises:
        ConfigError: The model does not exist.
        UnfinishedError: The captions are not complete.
    """
    folder = stage_folder(config.run, "images")
    captions = config.captions or storage.join(config.run, "captions")
    if retry:
        folder = folder.retry(retry)
        captions = storage.join(folder.url, "captions")
    try:
        rows = CaptionRows.open(storage.join(captions, "index.parquet"))
    except MissingFileError as error:
        raise UnfinishedError(
            f"{captions} has no complete captions to paint (no index.parquet): run the curate "
            "stage to its end, then this command again"
        ) from error
    model = find_model(config.model, config.revision)
    fields = {
        **fingerprint_fields(config),
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
        settings=_settings(config, model),
        encoding=config.encoding,
        max_repaints=config.max_repaints,
        min_contrast=config.min_contrast,
        batch_timeout_s=config.generator.batch_timeout_s,
    )
    return Stage(
        folder=folder,
        fingerprint=Fingerprint(fields),
        config=config.model_dump(mode="json"),
        num_shards=-(-rows.num_captions // config.captions_per_shard),
        num_records=rows.num_captions,
        unit=STAGES["images"].unit,
        producer=ImagesProducer(rows, DiffusersSpec(model, config.generator), plan),
        metadata={
            "images_per_caption": str(config.images_per_caption),
            "generator_digest": digest,
        },
    )


def generator_digest(config: ImagesConfig, model: ImageModel) -> str:
    """Identity of the generator, of which the seeds of its images are made.

    Neither the captions nor how they are cut into shards and batches are part of it, nor what two
    runs may want to compare on the same noise.
    """
    settings = _settings(config, model)
    names = ("model_identity", "num_steps", "guidance", "scheduler", "size", "dtype")
    own = {name: settings[name] for name in names}
    return Fingerprint({**own, "seed": config.seed, "code_version": CODE_VERSION}).digest


def _settings(config: ImagesConfig, model: ImageModel) -> dict[str, Any]:
    """What is written beside every image set."""
    return {
        "model": model.name,
        "model_identity": model.identity,
        **fingerprint_fields(config.generator),
    }
