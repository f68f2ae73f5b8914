"""timm's transformer block, whose two branches take the factors of drop path as an input."""

from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor


class Block(TimmBlock):
    """A block with the weights of timm's.

    The factors are an input and no state, because a block that is computed again in the backward
    pass needs those of its own forward pass.
    """

    def forward(self, tokens: Tensor, factors: Tensor | None = None) -> Tensor:
        """Return the tokens after the block [N, tokens, D].

        Args:
            tokens: [N, tokens, D].
            factors: [2, N] from `DropPath`, for each branch; None leaves nothing out.
        """
        if factors is None:
            result: Tensor = super().forward(tokens)
            return result
        first, second = factors[:, :, None, None].unbind()
        attended = self.ls1(self.attn(self.norm1(tokens)))
        tokens = tokens + attended * first.to(attended.dtype)
        transformed = self.ls2(self.mlp(self.norm2(tokens)))
        return tokens + transformed * second.to(transformed.dtype)
