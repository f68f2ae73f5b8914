"""Other content of a `run.yaml`, as an earlier version would have written it."""

from collections.abc import Mapping
from typing import Any

import yaml

from transforms.core import storage
from transforms.core.fingerprint import Fingerprint


def write_run_yaml(content: Mapping[str, Any], url: str) -> None:
    """Write the values of a `run.yaml`, with the fingerprint of its fields and no checksum."""
    values = {key: value for key, value in content.items() if key != "run_sha256"}
    values["fingerprint"] = Fingerprint.recorded(values).digest
    storage.replace_bytes(yaml.safe_dump(values).encode(), url)
