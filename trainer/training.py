"""One training: networks, optimiser and step, and how they make a step together."""

import math

import torch

from trainer import checkpoint, distributed, schedules
from trainer.config import TrainConfig
from trainer.network import update_teacher
from trainer.optim import build_optimizer, set_schedule
from trainer.stream import Batch
from trainer.synclr import Objective, build_networks
from trainer.vit import use_plain_attention


class TrainingError(RuntimeError):
    """The training cannot go on; the message is one sentence."""


class Training:
    """Networks, optimiser and step: everything that a checkpoint carries.

    Args:
        config: The training.
        device: Of this rank.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        student, teacher = build_networks(config.model, config.objective, config.seed)
        if device.type == "cpu":
            use_plain_attention(student)
            if teacher is not None:
                use_plain_attention(teacher)
        self.config = config
        self.student = student.to(device)
        self.teacher = None if teacher is None else teacher.to(device)
        self.optimizer = build_optimizer(self.student, config.optim)
        self.objective = Objective(
            config.objective,
            config.model,
            config.photometric,
            self.student,
            self.teacher,
            images_per_caption=config.images_per_caption,
            captions_per_batch=config.captions_per_batch,
            accumulation=config.accumulation,
            precision=config.precision,
            seed=config.seed,
        )
        self.step = 0
        self.num_replaced = 0

    def update(self, batch: Batch) -> dict[str, float]:
        """One optimiser step on this rank's share of a batch; the same on every rank.

        Returns:
            Loss terms and schedules, for people.

        Raises:
            TrainingError: The loss is not finite; the weights are as before.
        """
        step, total = self.step, self.config.steps
        optim = self.config.optim
        rate = set_schedule(self.optimizer, optim, step, total)
        terms = self.objective.backward(batch, step)
        distributed.average_gradients(self.student.parameters())
        names = list(terms)
        packed = torch.stack([*terms.values(), terms["loss"].new_tensor(batch.num_replaced)])
        *means, replaced = (distributed.all_reduce(packed) / distributed.world_size()).tolist()
        values = dict(zip(names, means, strict=True))
        if not math.isfinite(values["loss"]):
            first = step * self.config.captions_per_batch
            listed = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            raise TrainingError(
                f"the loss at step {step} is not finite ({listed}; data positions {first} "
                f"to {first + self.config.captions_per_batch - 1})"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.teacher is not None:
            start, end = optim.ema_momentum
            momentum = schedules.ema_momentum(step, total, start=start, end=end)
            update_teacher(self.teacher, self.student, momentum)
        self.step += 1
        self.num_replaced += round(replaced * distributed.world_size())
        return {**values, "learning_rate": rate, "replaced": self.num_replaced}

    def state(self) -> checkpoint.State:
        """What a checkpoint holds."""
        return {
            "step": self.step,
            "position": self.step * self.config.captions_per_batch,
            "num_replaced": self.num_replaced,
            "config": self.config.model_dump(mode="json"),
            "student": self.student.state_dict(),
            "teacher": None if self.teacher is None else self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: checkpoint.State) -> None:
        """Continue from what a checkpoint holds."""
        self.student.load_state_dict(state["student"])
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.num_replaced = state["num_replaced"]
