"""Folders of the repository, for tests that read its files or start its commands."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PIPELINE_CONFIGS = ROOT / "pipelines" / "configs"
PIPELINE_DATA = ROOT / "pipelines" / "data"
TRAINER_CONFIGS = ROOT / "trainer" / "configs"
