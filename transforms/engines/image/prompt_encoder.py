"""Encoding of captions into the embeddings that a diffusers pipeline takes instead of text.

A caption is encoded once for all its images, with the pipeline's own `encode_prompt`. The negative
prompt, which is often empty, is encoded once per engine.
"""

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TEXT_BATCH_SIZE = 8
"""Captions encoded together. The number is fixed, so that a caption's shape never changes."""

_PLAIN = ("prompt_embeds", "negative_prompt_embeds")
_POOLED = (*_PLAIN, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
EMBEDDINGS = {
    "StableDiffusionPipeline": _PLAIN,
    "StableDiffusionXLPipeline": _POOLED,
    "StableDiffusion3Pipeline": _POOLED,
}
"""Pipeline class -> names of what its `encode_prompt` returns, as arguments of a call."""


class PromptEncoder:
    """Encodes captions for one of the pipelines in `EMBEDDINGS`."""

    def __init__(
        self, pipeline: Any, device: "torch.device", negative_prompt: str | None, num_kept: int
    ) -> None:
        """Encode the negative prompt.

        Args:
            pipeline: A loaded pipeline.
            device: Device of the pipeline.
            negative_prompt: Prompt that guidance moves away from; None without guidance.
            num_kept: Number of captions whose embeddings are kept.
        """
        self._pipeline = pipeline
        self._device = device
        self._num_kept = num_kept
        self._known: OrderedDict[str, dict[str, torch.Tensor]] = OrderedDict()
        self._negative: dict[str, torch.Tensor] = {}
        if negative_prompt is not None:
            # Without a negative prompt some models use zeros, which differ from an empty prompt.
            negatives = [negative_prompt] * TEXT_BATCH_SIZE if negative_prompt else None
            both = self._call([""] * TEXT_BATCH_SIZE, True, negative_prompt=negatives)
            self._negative = {name: both[name][:1] for name in both if _is_negative(name)}

    def encode(self, texts: Sequence[str]) -> "dict[str, torch.Tensor]":
        """Return arguments for a call of the pipeline; each tensor is [len(texts), ...]."""
        import torch

        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for start in range(0, len(new), TEXT_BATCH_SIZE):
            part = new[start : start + TEXT_BATCH_SIZE]
            encoded = self._call(part + [""] * (TEXT_BATCH_SIZE - len(part)), False)
            for row, text in enumerate(part):
                self._known[text] = {
                    name: encoded[name][row] for name in encoded if not _is_negative(name)
                }
        rows = [self._known[text] for text in texts]
        arguments = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        for name, tensor in self._negative.items():
            arguments[name] = tensor.expand(len(texts), *tensor.shape[1:])
        for text in dict.fromkeys(texts):
            self._known.move_to_end(text)
        while len(self._known) > self._num_kept:
            self._known.popitem(last=False)
        return arguments

    def _call(self, prompts: list[str], guided: bool, **others: Any) -> "dict[str, torch.Tensor]":
        encode = self._pipeline.encode_prompt
        # Pipelines with several text encoders give all of them the same text.
        known = inspect.signature(encode).parameters
        others |= {name: None for name in ("prompt_2", "prompt_3") if name in known}
        outputs = encode(
            prompt=prompts,
            device=self._device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=guided,
            **others,
        )
        return dict(zip(EMBEDDINGS[type(self._pipeline).__name__], outputs, strict=True))


def _is_negative(name: str) -> bool:
    return name.startswith("negative_")
