"""Training state (networks, optimiser, teacher) and the update of one step.

A step never waits for the device: losses stay on the device until they are asked for, and so does
the result of the check that they are finite. From the first step whose loss or gradient is not
finite, the device leaves weights, optimiser and teacher unchanged, so a late check loses nothing.
(The running estimates of the heads' batch norms still change, but no training reads them.)
"""

from collections import deque

import torch
from torch import Tensor

from trainer import distributed
from trainer.checkpoints.files import State
from trainer.config import TrainConfig, is_skipped
from trainer.data.batch import Batch, hex_ids
from trainer.execution import load_optimizer_state, load_state, prepare, unsharded
from trainer.losses import schedules
from trainer.models.student_teacher import update_teacher
from trainer.models.vit import EncoderNetwork
from trainer.objectives.registry import build_networks, build_objective
from trainer.optim import build_optimizer, set_schedule
from trainer.training.errors import NotFiniteError
from transforms.core.errors import ConfigError
from transforms.core.fingerprint import library_versions


class Training:
    """Networks, optimiser and step: everything that a checkpoint holds.

    Args:
        config: The training.
        device: Device of this rank.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config = config
        self.student, self.teacher = build_networks(config)
        module = prepare(self.student, self.teacher, config.execution, device, config.precision)
        self.optimizer = build_optimizer(self.student, config.optim)
        self.objective = build_objective(config, module, self.teacher)
        self.step = 0
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self._num_replaced = torch.zeros((), dtype=torch.float64, device=device)
        self._terms: dict[str, Tensor] = {}
        self._rate = 0.0
        self._recent: deque[tuple[int, Tensor]] = deque()

    @property
    def network(self) -> EncoderNetwork:
        """The network that is the result: the teacher, or the student if there is no teacher."""
        return self.teacher or self.student

    def update(self, batch: Batch) -> None:
        """Make one optimiser step on this rank's part of a batch; all ranks call this together.

        A step that the config skips only increases the number of steps.
        """
        if is_skipped(self.config, self.step):
            self._terms, self._rate = {}, 0.0
            self.step += 1
            return
        step, total = self.step, self.config.steps
        optim = self.config.optim
        self._rate = set_schedule(self.optimizer, optim, step, total)
        terms = self.objective.backward(batch, step)
        self._record(terms, batch)
        frozen = self._check_finite(step)
        # The fused optimiser reads this on the device and changes nothing if it is 1.
        self.optimizer.found_inf = frozen.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.student.keep_within_bounds()
        self.optimizer.zero_grad(set_to_none=True)
        if self.teacher is not None:
            start, end = optim.ema_momentum
            share = 1.0 - schedules.ema_momentum(step, total, start=start, end=end)
            update_teacher(self.teacher, self.student, torch.where(frozen, 0.0, share))
        self.step += 1

    def values(self) -> dict[str, float]:
        """Return the metrics of the last step, without loss terms if it was skipped.

        This waits for the device. All ranks must call it at the same step.

        Raises:
            NotFiniteError: A step since the last call was not finite; the state before it is kept.
        """
        names = [*self._terms, "replaced", "first bad"]
        tensors = [*self._terms.values(), self._num_replaced, self._first_bad]
        numbers = torch.stack([tensor.double() for tensor in tensors]).tolist()
        values = dict(zip(names, numbers, strict=True))
        first_bad = int(values.pop("first bad"))
        if first_bad >= 0:
            raise self._not_finite(first_bad)
        self._recent.clear()
        return {**values, "learning_rate": self._rate}

    def _record(self, terms: dict[str, Tensor], batch: Batch) -> None:
        """Keep the loss terms of a step on the device, averaged over the ranks."""
        terms = {**terms, **self.objective.collapse_metrics}
        local = [term.double() for term in terms.values()]
        packed = torch.stack([*local, torch.full_like(local[0], batch.num_replaced)])
        *totals, replaced = distributed.all_reduce(packed)
        ranks = distributed.world_size()
        self._terms = {name: total / ranks for name, total in zip(terms, totals, strict=True)}
        self._terms["grad_norm"] = self._clip()
        self._num_replaced += replaced
        self._recent.append((self.step, batch.caption_ids))

    def _clip(self) -> Tensor:
        """Clip the gradient if the config asks for it; return its norm before."""
        parameters = [p for p in self.student.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.config.optim.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.optim.clip_norm, norm)
        return unsharded(norm)

    def _check_finite(self, step: int) -> Tensor:
        """Return whether this step or an earlier one is not finite, as a scalar on the device."""
        finite = self._terms["loss"].isfinite() & self._terms["grad_norm"].isfinite()
        first = (self._first_bad < 0) & ~finite
        self._first_bad = torch.where(first, step, self._first_bad)
        return self._first_bad >= 0

    def _not_finite(self, step: int) -> NotFiniteError:
        """Return the error about a step, with the captions of all ranks."""
        mine = next(ids for number, ids in self._recent if number == step)
        ids = distributed.gather_objects(hex_ids(mine))
        first = step * self.config.captions_per_batch
        return NotFiniteError(
            f"the loss or a gradient at step {step} is not finite (data positions {first} to "
            f"{first + self.config.captions_per_batch - 1})",
            step,
            [caption_id for rank in ids for caption_id in rank],
        )

    def state(self) -> State:
        """Return the state for a checkpoint; all ranks must call this together.

        Rank 0 gets all tensors; on the other ranks sharded tensors are None.
        """
        return {
            "step": self.step,
            "position": self.step * self.config.captions_per_batch,
            "num_replaced": int(self._num_replaced),
            "config": self.config.written(),
            "versions": dict(library_versions()),
            "student": unsharded(self.student.state_dict(), to_host=True),
            "teacher": self.teacher and unsharded(self.teacher.state_dict(), to_host=True),
            "optimizer": unsharded(self.optimizer.state_dict(), to_host=True),
        }

    def restore(self, state: State) -> None:
        """Load the state of a checkpoint.

        Raises:
            ConfigError: The checkpoint is of another architecture.
        """
        try:
            load_state(self.student, state["student"])
            if self.teacher is not None:
                load_state(self.teacher, state["teacher"])
            load_optimizer_state(self.optimizer, state["optimizer"])
        except (RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"the checkpoint of step {state.get('step')} is of another architecture than the "
                "config describes: expected one of this training"
            ) from error
        self.step = state["step"]
        self._num_replaced.fill_(state["num_replaced"])
