"""Operations from the shapes are those that torch counts when the networks run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.support.gradients import step_batch, tiny_config
from tests.support.image_shards import UNCHANGED, write_image_captions, write_images
from trainer.config import batch_images
from trainer.models import flops
from trainer.models.student_teacher import Network
from trainer.models.vit import EncoderConfig, build_encoder, use_plain_attention
from trainer.objectives.synclr import SynCLR
from trainer.training.flops import image_flops, peak_flops
from trainer.training.step import Training


def counted(run: object) -> int:
    with FlopCounterMode(display=False) as counter:
        run()  # type: ignore[operator]
    return counter.get_total_flops()


@pytest.mark.parametrize("size", [16, 8])
def test_the_encoder(size: int) -> None:
    model = tiny_config("unused").model
    encoder = build_encoder(model, seed=0)
    use_plain_attention(encoder)
    images = torch.randn(1, 3, size, size)
    assert flops.encoder_flops(model, size) == counted(lambda: encoder(images))


def test_a_network_with_its_heads_forward_and_backward() -> None:
    config = tiny_config("unused")
    settings, model = SynCLR.settings_of(config), config.model
    network = Network(
        model,
        settings.contrastive_head,
        settings.prototype_head,
        predictor=True,
        drop_path=0.0,
        seed=0,
    )
    use_plain_attention(network)
    size = model.image_size
    images = torch.randn(6, 3, size, size)
    patches = torch.arange(0, 6 * model.num_patches, 2)

    def forward() -> torch.Tensor:
        outputs = network(images, patches=patches)
        assert outputs.features is not None
        assert outputs.prototypes is not None
        return outputs.embeddings.sum() + (outputs.features @ outputs.prototypes.T).sum()

    expected = 6 * flops.encoder_flops(model, size)
    expected += 6 * flops.contrastive_head_flops(
        model.width, settings.contrastive_head, predictor=True
    )
    expected += len(patches) * flops.prototype_head_flops(model.width, settings.prototype_head)
    assert counted(forward) == pytest.approx(expected, rel=0.01)
    both = counted(lambda: forward().backward())
    # Images need no gradient, so the backward pass of the patch embedding costs half as much.
    embedding = 6 * 2 * model.num_patches * model.width * 3 * model.patch_size**2
    wanted = (flops.FORWARD + flops.BACKWARD) * expected - embedding
    assert both == pytest.approx(wanted, rel=0.01)


def test_vit_b() -> None:
    # According to timm, ViT-B/16 takes 17.6 billion multiply-adds for an image of 224 pixels.
    assert flops.encoder_flops(EncoderConfig(), 224) == pytest.approx(2 * 17.6e9, rel=0.01)


HEADS: dict[str, Any] = {
    "contrastive_head": {"hidden": 192, "out": 48},
    "prototype_head": {"hidden": 192, "bottleneck": 8, "num_prototypes": 12},
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "synclr": {"objective": HEADS},
    "simclr": {
        "crops": {"num_global": 2, "num_local": 0},
        "objective": {**HEADS, "teacher": False, "ibot_weight": 0.0},
    },
    "supervised": {"crops": {"num_local": 0}, "objective": {"kind": "supervised"}},
    "clip": {
        "crops": {"num_local": 0},
        "objective": {
            "kind": "clip",
            "text": {"context": 24, "width": 24, "depth": 2, "num_heads": 2, "out": 6},
        },
    },
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_of_every_objective(name: str, tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    write_image_captions(tmp_path / "captions")
    # With these sizes encoder and heads cost about the same, and what the formula leaves out costs
    # next to nothing: the backward pass of the patch embedding, logits that iBOT computes again.
    config = tiny_config(
        tmp_path,
        model={"patch_size": 4, "width": 48, "mlp_ratio": 3.0},
        photometric=UNCHANGED,  # Blur would count: it is a matrix product.
        crops={"num_local": 3, **OBJECTIVES[name].get("crops", {})},
        objective=OBJECTIVES[name].get("objective", {}),
    )
    training, batch = Training(config, torch.device("cpu")), step_batch(config, 0)
    # The counter does not know torch's fused attention on a CPU.
    with sdpa_kernel(SDPBackend.MATH):
        found = counted(lambda: training.update(batch))
    assert image_flops(config) * batch_images(config) == pytest.approx(found, rel=0.02)


def test_peaks_are_found_by_a_part_of_the_name() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA H100 NVL") == 835e12
    assert peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("NVIDIA L40") == 181e12
    assert peak_flops("a card of next year") is None
