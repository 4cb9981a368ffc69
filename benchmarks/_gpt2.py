"""A network of GPT-2's shape, of PyTorch's own layers, trained on random tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["GPT2", "Training"]


class GPT2(nn.Module):
    """The smallest GPT-2 unless told otherwise: 124,439,808 weights; logits of the next token.

    The output layer has the weights of the embedding, as there (Radford et al. 2019).

    Parameters
    ----------
    width, depth
        Of the residual stream, in 64ths a head each; and in blocks.
    vocabulary, context
        How many tokens there are, and how many of them in a row at most.
    """

    def __init__(
        self, width: int = 768, depth: int = 12, vocabulary: int = 50257, context: int = 1024
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, max(1, width // 64), 4 * width, dropout=0.0, activation="gelu",
                batch_first=True, norm_first=True,
            )
            for _ in range(depth)
        )  # fmt: skip
        self.norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Take (batch, length) tokens, give (batch, length, vocabulary) logits."""
        length = tokens.shape[1]
        found = self.tokens(tokens) + self.places.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        for block in self.blocks:
            found = block(found, src_mask=mask, is_causal=True)
        return functional.linear(self.norm(found), self.tokens.weight)


class Training:
    """SGD with momentum, a minibatch for each call of `step`; the same from each seed."""

    def __init__(self, width: int, depth: int, tokens: int, device: str) -> None:
        torch.manual_seed(0)
        with torch.device(device):
            self.model = GPT2(width, depth)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self._generator = torch.Generator().manual_seed(1)
        self._shape = 1, tokens + 1
        self._device = device

    def step(self) -> None:
        """Train on one row of tokens."""
        vocabulary = self.model.tokens.num_embeddings
        row = torch.randint(vocabulary, self._shape, generator=self._generator).to(self._device)
        self.optimizer.zero_grad()
        logits = self.model(row[:, :-1])
        torch.autograd.backward(functional.cross_entropy(logits[0], row[0, 1:]))
        self.optimizer.step()
