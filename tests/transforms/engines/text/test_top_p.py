import pytest
import torch

from transforms.engines.text.top_p import SHORTLIST, keep_top_p


def slow_top_p(row: torch.Tensor, top_p: float) -> set[int]:
    """Take the most likely tokens one by one until they hold top_p of the mass."""
    masses = row.double().softmax(0).tolist()
    held, kept = 0.0, set[int]()
    for token in sorted(range(len(masses)), key=lambda t: -masses[t]):
        if held >= top_p and kept:
            break
        kept.add(token)
        held += masses[token]
    return kept


@pytest.mark.parametrize("top_p", [0.001, 0.5, 0.9, 0.95])
@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0, 50.0])
@pytest.mark.parametrize("vocabulary", [1, 7, SHORTLIST, 3 * SHORTLIST])
def test_the_smallest_set_that_holds_the_mass_is_kept(
    top_p: float, spread: float, vocabulary: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(6, vocabulary, generator=generator)
    before = logits.clone()
    result = keep_top_p(logits, top_p)
    assert result is logits
    for row, original in zip(result, before, strict=True):
        kept = {i for i, value in enumerate(row.tolist()) if value > -float("inf")}
        expected = slow_top_p(original, top_p)
        # A token at the very edge may fall on either side of it in float32.
        assert len(kept ^ expected) <= 1
        assert int(original.argmax()) in kept
        assert torch.equal(row[list(kept)], original[list(kept)])


def test_everything_stays_with_top_p_of_one_half_masked_stays_masked() -> None:
    logits = torch.tensor([[0.0, 1.0, -float("inf"), 2.0]])
    assert torch.equal(keep_top_p(logits.clone(), 1.0), logits)
    assert keep_top_p(logits.clone(), 0.1).tolist()[0] == [-float("inf")] * 3 + [2.0]


def test_equally_likely_tokens_stay_together() -> None:
    kept = keep_top_p(torch.zeros(1, 4 * SHORTLIST), 0.5)
    assert torch.isfinite(kept).all()
