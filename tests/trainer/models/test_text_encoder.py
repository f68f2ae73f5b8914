"""Captions as tokens; tokens after the end of a caption have no effect on its embedding."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.models.text_encoder import TextConfig, TextEncoder, tokenize, vocabulary_size
from transforms.core.errors import ConfigError

TINY = TextConfig(context=12, width=8, depth=2, num_heads=2, out=4)


@given(text=st.text(max_size=20))
def test_bytes_come_back_up_to_the_context(text: str) -> None:
    row = tokenize(text, TINY)
    assert row.shape == (12,)
    assert [row[0].item(), row[-1].item()] == [256, 257]
    body = row[1:][row[1:] < 256]
    assert bytes(body.tolist()) == text.encode()[:10]


def test_a_tokenizer_file_is_read(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({"a": 0, "cat": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    # CLIP's tokenizer adds a start token; ours must not come twice.
    words.post_processor = processors.TemplateProcessing(single="? $A", special_tokens=[("?", 2)])
    path = str(tmp_path / "tokenizer.json")
    words.save(path)
    config = TINY.model_copy(update={"tokenizer": path})
    assert vocabulary_size(config) == 5
    assert tokenize("a dog cat", config).tolist() == [3, 0, 2, 1, *[4] * 8]


def test_a_missing_tokenizer_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"'nowhere\.json': expected 'bytes' or a tokenizer"):
        vocabulary_size(TINY.model_copy(update={"tokenizer": "nowhere.json"}))


def test_what_follows_the_end_does_not_matter() -> None:
    encoder = TextEncoder(TINY)
    tokens = torch.stack([tokenize("a cat", TINY), tokenize("a dog", TINY)])
    changed = tokens.clone()
    changed[:, 8:] = 7
    torch.testing.assert_close(encoder(changed), encoder(tokens))
    first, second = encoder(tokens)
    assert not torch.allclose(first, second)


def test_every_caption_is_read_to_its_own_end() -> None:
    encoder = TextEncoder(TINY)
    short, long = tokenize("a", TINY), tokenize("a caption", TINY)
    together = encoder(torch.stack([short, long]))
    torch.testing.assert_close(together[:1], encoder(short[None]))
    torch.testing.assert_close(together[1:], encoder(long[None]))


@pytest.mark.parametrize("wrong", [{"context": 2}, {"width": 9}])
def test_impossible_settings_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"expected 3 or more|not a multiple"):
        TextConfig(**{**TINY.model_dump(), **wrong})
