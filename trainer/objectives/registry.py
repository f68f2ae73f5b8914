"""The objectives that a config can choose. To add one, write its module and list its class here."""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from torch import nn

from trainer.models.vit import EncoderNetwork
from trainer.objectives.augreg import AugReg
from trainer.objectives.base import Objective, ObjectiveConfig
from trainer.objectives.clip import CLIP
from trainer.objectives.supervised import Supervised
from trainer.objectives.synclr import ContrastiveConfig, SynCLR
from transforms.core.config import chosen_by

if TYPE_CHECKING:
    from trainer.config import TrainConfig

OBJECTIVES: tuple[type[Objective[Any]], ...] = (
    SynCLR,
    Supervised,
    AugReg,
    CLIP,
)
DEFAULT = ContrastiveConfig()
"""Section of a config that chooses no objective."""

if TYPE_CHECKING:
    AnyObjectiveConfig = ObjectiveConfig
else:
    AnyObjectiveConfig = Annotated[
        reduce(or_, (objective.settings_class for objective in OBJECTIVES)),
        Field(discriminator="kind"),
        chosen_by("kind", DEFAULT.kind),
    ]
    """Section `objective` of the config; its key `kind` chooses the objective."""


def objective_of(config: "TrainConfig") -> type[Objective[Any]]:
    """Return the objective that a training's config chooses."""
    return next(o for o in OBJECTIVES if o.settings_class is type(config.objective))


def build_networks(config: "TrainConfig") -> tuple[EncoderNetwork, EncoderNetwork | None]:
    """Return student and teacher (None without one), on the CPU; each has an `encoder`.

    Raises:
        ConfigError, StorageError: The networks depend on data that cannot be read.
    """
    return objective_of(config).build_networks(config)


def build_objective(
    config: "TrainConfig", student: nn.Module, teacher: nn.Module | None
) -> Objective[Any]:
    """Return the objective of networks from `build_networks`, which may be wrapped by now."""
    return objective_of(config)(config, student, teacher)
