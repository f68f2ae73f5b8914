"""Training of a segmenter, which continues from a state on disk after a kill.

Source: paper appendix, and BEiT's settings for mmsegmentation: AdamW, a learning rate that rises
and falls linearly, layer decay, cross-entropy averaged over all pixels (those of no class count 0),
0.4 times the loss of the auxiliary head. Several ranks share each batch and compute what one does:
gradients are averaged, and batch normalisation uses the pictures of all of them. Only drop path
draws other branches.

The state is one file, which is whole or absent. All draws are functions of (seed, step, sample).
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainer import distributed
from trainer.evaluate import states
from trainer.evaluate.models import Input
from trainer.evaluate.segmentation.network import Segmenter
from trainer.evaluate.segmentation.pictures import IGNORED, RandomCrops
from trainer.evaluate.segmentation.recipe import Recipe
from trainer.evaluate.segmentation.testing import upsampled
from transforms.core.errors import ConfigError
from transforms.core.progress import bar
from transforms.core.seeding import derive

CHECK_EVERY = 20
"""Steps between two looks at the loss and the clock, which the ranks take together."""


@dataclass(frozen=True)
class Machine:
    """Where a segmenter is trained; without influence on the result but by rounding."""

    device: str
    num_workers: int
    reduced: bool
    """Whether forward passes are in bfloat16."""


@dataclass
class SegmentationTraining:
    """A segmenter, its optimiser, and how far they are."""

    network: Segmenter
    recipe: Recipe
    input: Input
    machine: Machine
    seed: int
    url: str | None
    """File of the state; None keeps none."""
    step: int = 0
    """Number of finished steps."""
    lost: dict[str, None] = field(default_factory=dict)
    """Pictures that could not be used."""

    def __post_init__(self) -> None:
        """Move the network to the device."""
        if self.recipe.batch_size % distributed.world_size():
            raise ConfigError(
                f"segmentation.batch_size {self.recipe.batch_size} is not a multiple of the "
                f"{distributed.world_size()} ranks"
            )
        self.network.to(self.machine.device)
        groups = self.network.parameter_groups(self.recipe)
        self.optimiser = torch.optim.AdamW(groups, lr=self.recipe.learning_rate)

    def run(self, crops: RandomCrops) -> None:
        """Train to the last step, from the state on disk if there is one; all ranks together.

        Args:
            crops: Training samples.

        Raises:
            ConfigError: The loss is not finite.
            StorageError: A state cannot be read or written.
        """
        self._continue()
        if self.step == self.recipe.num_steps:
            return
        saved = time.monotonic()
        self.network.train()
        devices = [self.machine.device] if self.machine.device.startswith("cuda") else []
        with (
            torch.random.fork_rng(devices),
            bar(self.recipe.num_steps, "steps", "segmentation", self.step) as progress,
        ):
            for images, labels, lost in self._batches(crops):
                self.lost.update(dict.fromkeys(lost))
                loss = self._update(images, labels)
                self.step += 1
                progress.update()
                last = self.step == self.recipe.num_steps
                if self.step % CHECK_EVERY and not last:
                    continue
                progress.set_postfix(loss=f"{self._check(loss):.3f}", refresh=False)
                due = time.monotonic() - saved >= self.recipe.save_every_s
                if distributed.any_rank(due)[0] or last:
                    self._save()
                    saved = time.monotonic()

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of uint8 images [B, 3, S, S]: [B, C, h, w]."""
        self.network.eval()
        return self._forward(images)[0]

    def _forward(self, images: Tensor) -> list[Tensor]:
        device = images.device
        mean = torch.tensor(self.input.mean, device=device).view(3, 1, 1)
        std = torch.tensor(self.input.std, device=device).view(3, 1, 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.machine.reduced):
            logits: list[Tensor] = self.network((images.float() / 255 - mean) / std)
        return logits

    def _update(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take one step on this rank's part of a batch; return its loss."""
        torch.manual_seed(derive(self.seed, "drop path", self.step, distributed.rank()))
        factor = self.recipe.learning_rate_factor(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate * group["lr_scale"] * factor
        device = self.machine.device
        target = labels.to(device, non_blocking=True).long()
        logits = self._forward(images.to(device, non_blocking=True))
        weights = (1.0, self.recipe.auxiliary_weight)
        loss = torch.stack(
            [
                weight * pixel_loss(upsampled(head, self.recipe.size), target)
                for weight, head in zip(weights, logits, strict=False)
            ]
        ).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._average_gradients()
        self.optimiser.step()
        return loss.detach()

    def _average_gradients(self) -> None:
        if not distributed.is_on():
            return
        found = [p.grad for p in self.network.parameters() if p.grad is not None]
        flat = distributed.all_reduce(torch.cat([g.flatten() for g in found]))
        flat /= distributed.world_size()
        for gradient, mean in zip(found, flat.split([g.numel() for g in found]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def _batches(self, crops: RandomCrops) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        """Yield this rank's part of each batch from the current step on."""
        from torch.utils.data import DataLoader

        size = self.recipe.batch_size
        own = size // distributed.world_size()
        first = distributed.rank() * own
        numbers = [
            range(step * size + first, step * size + first + own)
            for step in range(self.step, self.recipe.num_steps)
        ]
        yield from DataLoader(
            crops,
            batch_sampler=numbers,  # type: ignore[arg-type]  # a range is as good as a list
            num_workers=self.machine.num_workers,
            collate_fn=_collate,
            pin_memory=self.machine.device.startswith("cuda"),
        )

    def _check(self, loss: Tensor) -> float:
        """Return the loss of all ranks."""
        mean = float(distributed.all_reduce(loss.clone())) / distributed.world_size()
        if not math.isfinite(mean):
            raise ConfigError(
                f"the loss of the segmentation is {mean} at step {self.step}: lower "
                "segmentation.learning_rate, or use precision=fp32"
            )
        return mean

    def _continue(self) -> None:
        """Read the state, if there is one; all ranks call this together."""
        state = states.load(self.url, "segmentation")
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        if state["optimiser"]:
            self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.lost = state["step"], dict.fromkeys(state["lost"])

    def _save(self) -> None:
        """Write the state, after the last step without the optimiser; all ranks together."""
        for others in distributed.gather_objects(list(self.lost)):
            self.lost.update(dict.fromkeys(others))
        unfinished = self.step < self.recipe.num_steps
        state: dict[str, Any] = {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict() if unfinished else {},
            "lost": list(self.lost),
        }
        states.save(state, self.url)


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy, its sum over the pixels with a class divided by all pixels.

    Args:
        logits: [N, C, S, S].
        labels: int64 [N, S, S].
    """
    total = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / labels.numel()


def _collate(samples: list[Any]) -> tuple[Tensor, Tensor, list[str]]:
    images, labels, lost = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(labels), [name for name in lost if name]
