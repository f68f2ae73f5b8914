"""CLIP's text side: captions as tokens, and the transformer that encodes them.

Source: CLIP's own text encoder; the paper's CLIP baseline (section 4.3, table 10) states none.
Deliberate difference: by default the tokens are the caption's UTF-8 bytes, which needs no
vocabulary. With CLIP's `tokenizer.json` they are its 77 BPE tokens.
"""

import os
from functools import cache
from typing import Any, Self

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from transforms.core.config import Config
from transforms.core.errors import ConfigError

NUM_BYTES = 256


class TextConfig(Config):
    """Shape of the text encoder; except for the tokens, the defaults are CLIP's for ViT-B."""

    tokenizer: str = "bytes"
    """`bytes`, or the path of a `tokenizer.json` in Hugging Face's format, such as CLIP's."""
    context: int = 192
    """Largest number of tokens of a caption, start and end included; the rest is cut off (CLIP: 77
    BPE tokens; nearly all captions have fewer than 190 bytes)."""
    width: PositiveInt = 512
    """Size of a token (CLIP: 512 for B, 768 for L)."""
    depth: PositiveInt = 12
    """Number of transformer blocks (CLIP: 12)."""
    num_heads: PositiveInt = 8
    """Attention heads per block (CLIP: 8 for B, 12 for L)."""
    out: PositiveInt = 512
    """Size of the embedding that images and texts share (CLIP: 512 for B, 768 for L)."""

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.context < 3:
            raise ValueError(f"context is {self.context}: expected 3 or more tokens")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        return self


def vocabulary_size(config: TextConfig) -> int:
    """Return the number of tokens: the tokenizer's, then one each for start and end."""
    if config.tokenizer == "bytes":
        return NUM_BYTES + 2
    return int(_tokenizer(config.tokenizer).get_vocab_size()) + 2


def tokenize(text: str, config: TextConfig) -> Tensor:
    """Return int64 [context]: start, the tokens of the caption, end, padded with end."""
    if config.tokenizer == "bytes":
        tokens = list(text.encode("utf-8"))
    else:
        tokens = _tokenizer(config.tokenizer).encode(text, add_special_tokens=False).ids
    start = vocabulary_size(config) - 2
    row = torch.full((config.context,), start + 1)
    tokens = [start, *tokens[: config.context - 2]]
    row[: len(tokens)] = torch.tensor(tokens)
    return row


@cache
def _tokenizer(path: str) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(os.path.expanduser(path))
    except Exception as error:  # The package raises nothing more specific.
        raise ConfigError(
            f"objective.text.tokenizer is {path!r}: expected 'bytes' or a tokenizer.json that can "
            f"be read ({error})"
        ) from error


class TextEncoder(nn.Module):
    """CLIP's text encoder: a causal transformer; its output at the end token is the embedding."""

    causal: Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        num_tokens = vocabulary_size(config)
        self.end = num_tokens - 1
        self.tokens = nn.Embedding(num_tokens, config.width)
        self.pos_embed = nn.Parameter(torch.empty(config.context, config.width))
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        layer = nn.TransformerEncoderLayer(
            config.width,
            config.num_heads,
            4 * config.width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(
            layer, config.depth, norm=nn.LayerNorm(config.width), enable_nested_tensor=False
        )
        for parameter in self.blocks.parameters():  # All layers are copies of the first.
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=config.width**-0.5)
        mask = nn.Transformer.generate_square_subsequent_mask(config.context)
        self.register_buffer("causal", mask, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [n, width] for captions int64 [n, context]."""
        hidden = self.blocks(self.tokens(tokens) + self.pos_embed, mask=self.causal, is_causal=True)
        first_end = (tokens == self.end).int().argmax(dim=1)
        texts: Tensor = hidden[torch.arange(len(tokens), device=tokens.device), first_end]
        return texts
