"""Time of our training step, compared with a straightforward one of the same method.

    python -m benchmarks.trainer_step [--device cuda --model vitb16 --captions 32]

The straightforward step has whole matrices of logits, masks and targets in float32, Sinkhorn-Knopp
on a matrix of exponentials, a separate pass for each local crop, AdamW and the teacher's average
parameter by parameter, and `.item()` in every step. Both use the same batch, networks, losses and
precision (including TF32); neither includes colour augmentation. On a GPU the script also compares
peak memory.

On a CPU it uses one thread and CPU time, so that other work on the machine does not count.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from trainer.config import TrainConfig
from trainer.data.batch import Batch
from trainer.data.crops import Crops, CropsConfig
from trainer.data.masking import choose_masked_images
from trainer.data.photometric import NUM_DRAWS
from trainer.execution import ExecutionConfig
from trainer.models.heads import ContrastiveHeadConfig, PrototypeHeadConfig
from trainer.models.student_teacher import Network, Outputs
from trainer.models.vit import EncoderConfig, use_plain_attention
from trainer.objectives.registry import build_networks
from trainer.objectives.synclr import ContrastiveConfig, SynCLR
from trainer.optim import is_decayed
from trainer.training.flops import image_flops, peak_flops
from trainer.training.step import Training

MODELS = {
    "tiny": EncoderConfig(image_size=64, patch_size=8, width=192, depth=6, num_heads=3),
    "vitb16": EncoderConfig(),
}


def config_of(name: str, captions: int, device: str, execution: ExecutionConfig) -> TrainConfig:
    small = name == "tiny"
    head = ContrastiveHeadConfig(hidden=512, out=128) if small else ContrastiveHeadConfig()
    prototypes = (
        PrototypeHeadConfig(hidden=256, bottleneck=64, num_prototypes=4096)
        if small
        else PrototypeHeadConfig()
    )
    return TrainConfig(
        run="unused",
        captions_per_batch=captions,
        device=device,
        model=MODELS[name],
        crops=CropsConfig(local_size=32 if small else 96),
        objective=ContrastiveConfig(
            contrastive_head=head, prototype_head=prototypes, contrastive_chunk=1024
        ),
        execution=execution,
    )


def random_batch(config: TrainConfig) -> Batch:
    images = config.captions_per_batch * config.images_per_caption
    size, small = config.model.image_size, config.crops.local_size
    generator = torch.Generator().manual_seed(0)

    def pixels(number: int, side: int) -> Tensor:
        shape = (number, 3, side, side)
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    num_local = images * config.crops.num_local
    order = torch.rand(images, config.model.num_patches, generator=generator).argsort(dim=1)
    return Batch(
        crops=Crops(
            global_pixels=pixels(images, size),
            global_draws=torch.zeros(images, NUM_DRAWS),
            local_pixels=pixels(num_local, small),
            local_draws=torch.zeros(num_local, NUM_DRAWS),
            patch_masks=order < config.model.num_patches // 2,
        ),
        caption_ids=torch.arange(config.captions_per_batch),
        positions=torch.arange(config.captions_per_batch),
        targets=torch.empty(config.captions_per_batch, 0, dtype=torch.int64),
        num_replaced=0,
    )


Prepared = tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]
"""Global crops, local crops of each slot, masks, indices of masked patches, caption ids."""

Factors = tuple[Tensor, Tensor]
"""Features [T, bottleneck] and prototypes [K, bottleneck]; their products are the logits."""


class Straightforward:
    """A simple implementation of the training step."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        student, teacher = build_networks(config)
        assert isinstance(student, Network)
        assert isinstance(teacher, Network)
        self.config, self.settings, self.device = config, SynCLR.settings_of(config), device
        self.student, self.teacher = student.to(device), teacher.to(device)
        if device.type == "cpu":
            use_plain_attention(student)
            use_plain_attention(teacher)
        named = list(student.named_parameters())
        groups = [[p for name, p in named if is_decayed(name, p) == decayed] for decayed in (1, 0)]
        self.optimizer = torch.optim.AdamW([{"params": group} for group in groups], foreach=False)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return normalised images on the device."""
        model = self.config.model
        shape = (1, 3, 1, 1)
        mean = torch.tensor(model.mean, device=self.device).view(shape)
        std = torch.tensor(model.std, device=self.device).view(shape)
        return (pixels.to(self.device).float() / 255 - mean) / std

    def step(self, batch: Batch) -> float:
        """Make one optimiser step; return the loss."""
        return self.update(self.prepare(batch)).item()

    def prepare(self, batch: Batch) -> Prepared:
        """Return the batch on the device."""
        images = self.normalise(batch.crops.global_pixels)
        num_images = len(images)
        num_local = self.config.crops.num_local
        side = self.config.crops.local_size
        local_pixels = batch.crops.local_pixels.view(num_images, num_local, 3, side, side)
        locals_ = [self.normalise(local_pixels[:, number]) for number in range(num_local)]
        chosen = torch.from_numpy(choose_masked_images(num_images, 0.5, seed=0))
        mask = (batch.crops.patch_masks & chosen[:, None]).to(self.device)
        patches = mask.flatten().nonzero().squeeze(1)
        ids = batch.caption_ids.repeat_interleave(self.config.images_per_caption).to(self.device)
        return images, locals_, mask, patches, ids

    def update(self, prepared: Prepared) -> Tensor:
        """Make one optimiser step; return the loss, on the device."""
        images, locals_, mask, patches, ids = prepared
        num_local = len(locals_)
        with torch.autocast(self.device.type, torch.bfloat16):
            with torch.no_grad():
                teacher_out: Outputs = self.teacher(images, None, None, patches)
            seeds = torch.arange(len(images), device=self.device)  # Of drop path.
            student_out: Outputs = self.student(images, None, mask, patches, seeds)
            local_embeddings = [self.student(crops, seeds=seeds).embeddings for crops in locals_]
        loss = self.contrast(
            student_out.embeddings, ids, teacher_out.embeddings, ids, leave_out_own=True
        )
        anchors = torch.cat(local_embeddings)
        loss = loss + self.contrast(anchors, ids.repeat(num_local), teacher_out.embeddings, ids)
        assert student_out.features is not None and student_out.prototypes is not None
        assert teacher_out.features is not None and teacher_out.prototypes is not None
        student, teacher = (
            (student_out.features, student_out.prototypes),
            (teacher_out.features, teacher_out.prototypes),
        )
        loss = loss + ibot_loss(student, teacher, self.settings.student_temperature)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            values = self.student.state_dict()
            for name, value in self.teacher.state_dict().items():
                value.mul_(0.994).add_(values[name], alpha=0.006)
        return loss.detach()

    def contrast(
        self,
        anchors: Tensor,
        ids: Tensor,
        keys: Tensor,
        key_ids: Tensor,
        leave_out_own: bool = False,
    ) -> Tensor:
        """Return the multi-positive loss, computed from whole matrices."""
        anchors = functional.normalize(anchors.float(), dim=1)
        keys = functional.normalize(keys.float(), dim=1)
        logits = anchors @ keys.T / self.settings.temperature
        positives = (ids[:, None] == key_ids).float()
        if leave_out_own:
            own = torch.eye(len(anchors), device=self.device)
            logits = logits - own * 1e9
            positives = positives * (1 - own)
        shares = positives / positives.sum(dim=1, keepdim=True)
        return -(shares * logits.log_softmax(dim=1)).sum(dim=1).mean()


def ibot_loss(student: Factors, teacher: Factors, temperature: float) -> Tensor:
    """Return the mean over all masked patches; all images have the same number of them."""
    targets = sinkhorn(*teacher)
    features, prototypes = student
    logits = features @ prototypes.T / temperature
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()


@torch.no_grad()
def sinkhorn(features: Tensor, prototypes: Tensor) -> Tensor:
    """Return the targets of the masked patches, [T, K]."""
    # The real temperature would overflow; the cost is the same.
    matrix = torch.exp(features @ prototypes.T).T
    matrix /= matrix.sum()
    for _ in range(3):
        matrix /= matrix.sum(dim=1, keepdim=True) * matrix.shape[0]
        matrix /= matrix.sum(dim=0, keepdim=True) * matrix.shape[1]
    return (matrix * matrix.shape[1]).T


def ours(config: TrainConfig, device: torch.device) -> Callable[[Batch], object]:
    training = Training(config, device)

    def step(batch: Batch) -> None:
        training.step = 0  # The batch has the positions of this step.
        training.update(batch)

    return step


def measure(
    step: Callable[[Batch], object], batch: Batch, turns: int, *, cuda: bool
) -> tuple[float, float]:
    """Return the median seconds of a step (CPU time on a CPU) and, on a GPU, the peak in GiB."""
    clock = time.perf_counter if cuda else time.process_time
    for _ in range(2):
        step(batch)
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(turns):
        started = clock()
        step(batch)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(clock() - started)
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan")
    return statistics.median(seconds), peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", choices=tuple(MODELS), default="tiny")
    parser.add_argument("--captions", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for both, as in our training.
    torch.set_num_threads(1)  # CPU time is then the time of a step on an idle core.
    base = 0.0
    for name, compiled in (("straightforward", False), ("ours", False), ("ours, compiled", True)):
        execution = ExecutionConfig(compile=compiled)
        config = config_of(arguments.model, arguments.captions, arguments.device, execution)
        batch = random_batch(config)
        build = Straightforward(config, device).step if name[0] == "s" else ours(config, device)
        seconds, peak = measure(build, batch, arguments.turns, cuda=device.type == "cuda")
        images = config.captions_per_batch * config.images_per_caption
        base = base or seconds
        line = f"{name:16s} {images / seconds:8.1f} images/s  {base / seconds:5.2f}x"
        if device.type == "cuda":
            limit = peak_flops(torch.cuda.get_device_name()) or float("nan")
            used = images * image_flops(config) / seconds / limit
            line += f"  {peak:6.1f} GiB  {used:4.0%} of the device's peak arithmetic"
        print(line, flush=True)


if __name__ == "__main__":
    main()
