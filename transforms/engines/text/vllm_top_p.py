"""Logits processor of vLLM that samples with our top-p (see `top_p`).

vLLM creates it in each of its own processes, which import it by its name.
"""

from typing import TYPE_CHECKING, Any

from vllm.v1.sample.logits_processor import LogitsProcessor

from transforms.engines.text.top_p import keep_top_p

if TYPE_CHECKING:
    import torch


class TopPProcessor(LogitsProcessor):
    """Applies `keep_top_p` to every caption, as vLLM's own top-p after temperature.

    Args:
        vllm_config: Configuration of vLLM; `additional_config["top_p"]` is the mass to keep.
        device: Not used.
        is_pin_memory: Not used.
    """

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self._top_p = float(vllm_config.additional_config["top_p"])

    def apply(self, logits: "torch.Tensor") -> "torch.Tensor":
        """Keep the most likely tokens of each row of `logits`: [B, V]."""
        return keep_top_p(logits, self._top_p)

    def is_argmax_invariant(self) -> bool:
        """Return True: the most likely token always stays."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Do nothing: nothing depends on which captions are in the batch."""
