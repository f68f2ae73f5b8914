"""tiny-sd's text encoder: a CLIP-style BPE vocabulary and a two-layer `CLIPTextModel`.

The vocabulary is learnt from training captions, so every concept and background is a single token;
a rare word is split into several.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from pipelines.tiny_sd.captions import UNNAMED, load_words, write_caption
from pipelines.tiny_sd.scenes import BACKGROUNDS
from pipelines.tiny_sd.training import rank_and_world, wait_for_all

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


class TextConfig(BaseModel):
    """Shape of the vocabulary and the text encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    vocabulary: int = 2048
    """Maximum size of the BPE vocabulary."""
    max_length: int = 48
    """Tokens per caption; longer captions are cut, shorter ones padded."""
    width: int = 128
    """Width of the encoder."""
    num_layers: int = 2
    """Transformer layers."""
    num_heads: int = 4
    """Attention heads."""
    corpus_size: int = 60_000
    """Number of captions that the vocabulary is learnt from."""
    seed: int = 0
    """Seed of these captions and of the weights."""


def train_tokenizer(concepts: list[str], config: TextConfig, folder: Path) -> None:
    """Learn the vocabulary from training captions and save the tokenizer to `folder`."""
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import CLIPTokenizer

    rng = np.random.default_rng([config.seed, 3])
    corpus = [
        write_caption(concepts[i], BACKGROUNDS[j], rng).text
        for i, j in zip(
            rng.integers(len(concepts), size=config.corpus_size),
            rng.integers(len(BACKGROUNDS), size=config.corpus_size),
            strict=True,
        )
    ]
    # More occurrences of the names than in the captions, so that they become whole tokens first.
    for concept in concepts:
        corpus += [" ".join([concept, *load_words()["names"][concept]])] * 100
    backend = CLIPTokenizer().backend_tokenizer
    backend.model = BPE(end_of_word_suffix="</w>", unk_token=END)
    trainer = BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[START, END],
        initial_alphabet=ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    model = json.loads(backend.to_str())["model"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    tokenizer = CLIPTokenizer(
        vocab=model["vocab"], merges=merges, model_max_length=config.max_length
    )
    tokenizer.save_pretrained(folder)


def load_tokenizer(concepts: list[str], config: TextConfig, folder: Path) -> "CLIPTokenizer":
    """Load the tokenizer from `folder`; if it is not there, train it first."""
    from transformers import CLIPTokenizer

    if not (folder / "tokenizer_config.json").exists() and rank_and_world()[0] == 0:
        train_tokenizer(concepts, config, folder)
    wait_for_all()
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def build_text_encoder(tokenizer: "CLIPTokenizer", config: TextConfig) -> "CLIPTextModel":
    """Return an untrained text encoder for a tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(config.seed)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            projection_dim=config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=config.max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize(tokenizer: "CLIPTokenizer", texts: list[str]) -> Tensor:
    """Return the token ids of captions, cut and padded as in the pipeline: [N, max_length]."""
    ids: Tensor = tokenizer(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    return ids


class Reader(nn.Module):
    """Heads that predict concept and background from the last position; for training only."""

    def __init__(self, width: int, num_concepts: int) -> None:
        """Build the two untrained linear heads."""
        super().__init__()
        self.concept = nn.Linear(width, num_concepts)
        self.background = nn.Linear(width, UNNAMED + 1)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of `hidden` [N, T, width]: concepts [N, C] and backgrounds [N, B + 1]."""
        last = hidden[:, -1]
        return self.concept(last), self.background(last)
