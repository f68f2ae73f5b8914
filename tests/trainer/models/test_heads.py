"""Shapes of the heads, our batch norm against torch's, and weight norm."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import gelu

from trainer.models.heads import (
    BatchNorm,
    ContrastiveHeadConfig,
    Norm,
    PrototypeHead,
    PrototypeHeadConfig,
    build_predictor,
    build_projector,
)


def linear_shapes(module: nn.Module) -> list[tuple[int, int]]:
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    return [(layer.in_features, layer.out_features) for layer in layers]


@pytest.mark.parametrize("norm", ["bn", "ln", "ln_relu"])
def test_contrastive_heads_have_moco_v3s_layers(norm: Norm) -> None:
    config = ContrastiveHeadConfig(norm=norm)
    projector, predictor = build_projector(768, config), build_predictor(config)
    assert linear_shapes(projector) == [(768, 4096), (4096, 4096), (4096, 256)]
    assert linear_shapes(predictor) == [(256, 4096), (4096, 256)]
    for head in (projector, predictor):
        *inner, last = [m for m in head if isinstance(m, BatchNorm | nn.LayerNorm)]
        assert all(layer.weight is not None for layer in inner)
        assert last.weight is None
        assert last.bias is None
        biases = [layer.bias is not None for layer in head if isinstance(layer, nn.Linear)]
        assert biases == [norm == "ln"] * (len(biases) - 1) + [False]


def test_layer_norm_heads_are_those_of_the_authors_code() -> None:
    """Linear with bias, layer norm, GELU; then linear without bias and a norm without weights."""
    config = ContrastiveHeadConfig(norm="ln", hidden=16, out=6)
    start = torch.randn(12, 6, dtype=torch.float64)
    for head in (build_projector(6, config).double(), build_predictor(config).double()):
        linears = [layer for layer in head if isinstance(layer, nn.Linear)]
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.add_(torch.randn_like(parameter))
        norms = [layer for layer in head if isinstance(layer, nn.LayerNorm)]
        rows = start
        for linear, norm in zip(linears[:-1], norms[:-1], strict=True):
            rows = standardised(rows @ linear.weight.T + linear.bias, "ln")
            rows = gelu(rows * norm.weight + norm.bias)
        expected = standardised(rows @ linears[-1].weight.T, "ln")
        torch.testing.assert_close(head(start), expected)


def test_layer_norm_heads_start_from_a_truncated_normal_distribution() -> None:
    torch.manual_seed(0)
    head = build_projector(64, ContrastiveHeadConfig(norm="ln", hidden=256, out=32))
    for layer in head:
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert layer.weight.mean().item() == pytest.approx(0.0, abs=0.001)
            assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize("norm", ["bn", "ln_relu"])
def test_contrastive_heads_normalise_each_layer_and_rectify_the_inner_ones(norm: Norm) -> None:
    config = ContrastiveHeadConfig(norm=norm, hidden=16, out=6)
    start = torch.randn(12, 6, dtype=torch.float64)
    for head in (build_projector(6, config).double(), build_predictor(config).double()):
        rows = start
        *inner, last = [weight for weight in head.parameters() if weight.ndim == 2]
        for weight in inner:
            rows = standardised(rows @ weight.T, norm).relu()
        torch.testing.assert_close(head(start), standardised(rows @ last.T, norm))


def standardised(rows: Tensor, norm: Norm) -> Tensor:
    dim = 0 if norm == "bn" else 1
    variance = rows.var(dim, correction=0, keepdim=True)
    return (rows - rows.mean(dim, keepdim=True)) / (variance + 1e-5).sqrt()


def test_prototype_head_has_the_papers_layers_and_unit_features() -> None:
    head = PrototypeHead(768, PrototypeHeadConfig())
    assert linear_shapes(head) == [(768, 2048), (2048, 2048), (2048, 256)]
    assert head.prototypes.direction.shape == (65_536, 256)
    tokens = torch.randn(5, 768)
    first, second, third = [layer for layer in head.mlp if isinstance(layer, nn.Linear)]
    expected = functional.normalize(third(gelu(second(gelu(first(tokens))))), dim=1)
    torch.testing.assert_close(head(tokens), expected)
    with torch.autocast("cpu", torch.bfloat16):
        lengths = head(tokens).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(5), msg="in float32")


def test_prototypes_are_weight_normed() -> None:
    head = PrototypeHead(8, PrototypeHeadConfig(hidden=8, bottleneck=4, num_prototypes=6))
    layer = head.prototypes
    torch.testing.assert_close(layer.weight().norm(dim=1), torch.ones(6))
    with torch.no_grad():
        layer.gain.mul_(3.0)
        layer.direction.mul_(7.0)
    torch.testing.assert_close(layer.weight().norm(dim=1), torch.full((6,), 3.0))
    features = torch.randn(5, 4)
    torch.testing.assert_close(layer(features), features @ layer.weight().T)


def test_batch_norm_is_torchs() -> None:
    ours, torchs = BatchNorm(5), nn.BatchNorm1d(5)
    rows = torch.randn(16, 5) * 3 + 2
    inputs = [rows.clone().requires_grad_() for _ in range(2)]
    outputs = [ours(inputs[0]), torchs(inputs[1])]
    torch.testing.assert_close(*outputs)
    weights = torch.randn(16, 5)
    for output in outputs:
        (output * weights).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(ours.running_mean, torchs.running_mean)
    assert torchs.running_var is not None
    ours.running_var.copy_(torchs.running_var)  # Ours keeps the biased variance.
    torch.testing.assert_close(ours.eval()(rows), torchs.eval()(rows))


def test_batch_norm_works_on_half_precision_rows_in_float32() -> None:
    rows = (torch.randn(64, 3) * 0.01 + 100).bfloat16()
    output = BatchNorm(3)(rows)
    assert output.dtype == torch.bfloat16
    exact = BatchNorm(3)(rows.double())
    torch.testing.assert_close(output.double(), exact, atol=0.02, rtol=0.02)
