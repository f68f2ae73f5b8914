"""The registry of evaluation protocols.

To add a protocol, write a module with a config section and a `PROTOCOL`, as `knn` does, and name it
in `PROTOCOLS`. The command, the config section, fingerprints and the score sheet follow from that.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import create_model

from trainer.evaluate.config import EvaluateConfig
from trainer.evaluate.protocols import (
    fewshot,
    knn,
    linear,
    logistic,
    naming,
    segmentation,
)
from trainer.evaluate.protocols.base import Protocol

PROTOCOLS: Mapping[str, Protocol[Any]] = {
    protocol.name: protocol
    for protocol in (
        knn.PROTOCOL,
        fewshot.PROTOCOL,
        logistic.PROTOCOL,
        linear.PROTOCOL,
        naming.PROTOCOL,
        segmentation.PROTOCOL,
    )
}
"""Every protocol by its name."""


def config_class(protocols: Mapping[str, Protocol[Any]] = PROTOCOLS) -> type[EvaluateConfig]:
    """Return the config class of an evaluation: the shared settings and a section per protocol."""
    sections: dict[str, Any] = {
        name: (protocol.settings, protocol.settings()) for name, protocol in protocols.items()
    }
    return create_model(
        EvaluateConfig.__name__,
        __base__=EvaluateConfig,
        __module__=EvaluateConfig.__module__,
        __doc__=EvaluateConfig.__doc__,
        **sections,
    )
