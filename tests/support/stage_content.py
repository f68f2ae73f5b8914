"""What a stage folder holds that must not depend on how the stage ran."""

import hashlib

from transforms.core import storage


def content(url: str) -> dict[str, str]:
    """Return file name -> checksum of the files of a stage that is the same after any run.

    Commit records hold times, and `run.yaml` versions.
    """
    return {
        name: hashlib.sha256(storage.read_bytes(storage.join(url, name))).hexdigest()
        for name in storage.list_files(url)
        if not name.startswith(("commits/", "run.yaml"))
    }
