"""The segmenter: its sizes, its layers' learning rates, its drop path."""

import pytest
import timm
import torch

from tests.support.masked_pictures import small_encoder
from trainer.evaluate.segmentation.network import Segmenter
from trainer.evaluate.segmentation.recipe import SegmentationConfig, is_plain, recipe_for
from trainer.models.vit import EncoderConfig, build_encoder
from transforms.core.errors import ConfigError

SMALL = SegmentationConfig(num_steps=10, warmup_steps=2, crop_size=40, channels=8)


def test_recipes_of_the_paper() -> None:
    def paper(depth: int, patch: int) -> object:
        shape = EncoderConfig(
            image_size=4 * patch, patch_size=patch, width=32, depth=depth, num_heads=2
        )
        return recipe_for(SegmentationConfig(), build_encoder(shape, 0))

    base, large = paper(12, 16), paper(24, 14)
    for recipe, expected in (
        (base, (60_000, 32, 0.6, 0.1, 512, (3, 5, 7, 11))),
        (large, (160_000, 16, 0.8, 0.2, 518, (7, 11, 15, 23))),
    ):
        names = ("num_steps", "batch_size", "layer_decay", "drop_path", "size", "blocks")
        assert tuple(getattr(recipe, name) for name in names) == expected
        assert (recipe.learning_rate, recipe.weight_decay) == (8e-5, 0.05)  # type: ignore[attr-defined]
        assert recipe.warmup_steps == 1500  # type: ignore[attr-defined]


def test_learning_rate_rises_and_falls() -> None:
    recipe = recipe_for(SMALL, small_encoder())
    factors = [recipe.learning_rate_factor(step) for step in range(10)]
    assert factors[0] == 0.5 and factors[1] == pytest.approx(0.9)
    assert factors[1:] == pytest.approx([1 - step / 10 for step in range(1, 10)])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"num_steps": 10},
            "segmentation.warmup_steps 1500 is not below segmentation.num_steps 10",
        ),
        ({"blocks": (0, 1, 2)}, "'segmentation.blocks' has value [0, 1, 2]: expected four"),
        ({"blocks": (0, 0, 1, 2)}, "numbers below 2, the number of blocks"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        recipe_for(SegmentationConfig.model_validate(settings), small_encoder())
    assert words in str(raised.value)


def test_only_plain_vision_transformers_will_do() -> None:
    assert is_plain(small_encoder())
    assert is_plain(timm.create_model("vit_tiny_patch16_224", num_classes=0))
    assert not is_plain(timm.create_model("resnet10t", num_classes=0))


@pytest.mark.parametrize("head", ["upernet", "linear"])
def test_logits_and_what_they_depend_on(head: str) -> None:
    encoder = small_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    settings = SMALL.model_copy(update={"head": head})
    network = Segmenter(encoder, recipe_for(settings, encoder), 5, 0)
    images = torch.randn(2, 3, 40, 40)
    found = network(images)
    side = 40 if head == "upernet" else 10  # Patches of 4, four times as fine for UperNet.
    assert [tuple(logits.shape) for logits in found] == [(2, 5, side, side), (2, 5, 10, 10)][
        : 2 if head == "upernet" else 1
    ]
    found[0].sum().backward()
    assert network.encoder.patch_embed.proj.weight.grad.abs().sum() > 0, "trained end to end"
    assert len(network.eval()(images)) == 1
    again = Segmenter(encoder, recipe_for(settings, encoder), 5, 0).eval()
    torch.testing.assert_close(
        again.head.state_dict(),
        Segmenter(encoder, recipe_for(settings, encoder), 5, 0).head.state_dict(),
    )
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), "the scored encoder is left as it is"


def test_position_embeddings_are_resampled_as_timm_does_it() -> None:
    encoder = small_encoder().eval()
    network = Segmenter(encoder, recipe_for(SMALL, encoder), 5, 0).eval()
    images = torch.randn(1, 3, 40, 40)
    assert network.encoder.pos_embed.shape[1] == 1 + 100
    with torch.no_grad():
        torch.testing.assert_close(
            network.encoder.forward_features(images),
            encoder.forward_features(images),  # type: ignore[operator]
        )


def test_layer_decay_and_weight_decay() -> None:
    encoder = small_encoder()
    settings = SMALL.model_copy(update={"layer_decay": 0.5})
    recipe = recipe_for(settings, encoder)
    network = Segmenter(encoder, recipe, 5, 0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    scales, decays = {}, {}
    for group in network.parameter_groups(recipe):
        for parameter in group["params"]:
            scales[names[id(parameter)]] = group["lr_scale"]
            decays[names[id(parameter)]] = group["weight_decay"]
    assert scales.keys() == set(names.values())
    for name, scale in scales.items():
        if name.startswith("encoder.blocks."):
            expected = 0.5 ** (2 - int(name.split(".")[2]))
        else:
            expected = 1 if name.startswith(("head", "encoder.norm")) else 0.5**3
        assert scale == expected, name
    assert decays["encoder.pos_embed"] == decays["encoder.cls_token"] == 0
    assert decays["encoder.norm.bias"] == 0
    assert decays["encoder.blocks.0.mlp.fc1.weight"] == 0.05


def test_drop_path_grows_with_the_block() -> None:
    encoder = small_encoder()
    settings = SMALL.model_copy(update={"drop_path": 0.4})
    network = Segmenter(encoder, recipe_for(settings, encoder), 5, 0)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in network.encoder.blocks]
    assert rates == pytest.approx([0, 0.4])
    images = torch.randn(2, 3, 40, 40)
    assert not torch.equal(network.encoder(images), network.encoder(images))
    network.eval()
    assert torch.equal(network.encoder(images), network.encoder(images))
