"""The reference language models: tokens or bytes in, logits of the next one out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamseq.data.window import Window
from streamseq.training.recurrent import State, recurrent_layers

BYTES = 256


class LanguageModel(nn.Module):
    """Embedding, LSTM or GRU, linear: a language model over tokens, the integers from 0 to V - 1.

    The state is that of `nn.LSTM` (a pair) or `nn.GRU`, lanes on axis 1; None is zeros.

    Args:
        vocabulary: How many tokens there are, V.
        cell: "lstm" or "gru".
        hidden: Units of a layer, H.
        embedding: Size of the vector that stands for a token.
        layers: Number of recurrent layers, L.
        dropout: Probability with which an element is dropped after the embedding, between layers and after the last.

    Raises:
        ValueError: The cell has another name, a size is less than 1, or the probability is not in [0, 1).

    Example:
        >>> model = LanguageModel(vocabulary=10, cell="gru", hidden=16)
        >>> logits, state = model(torch.zeros(2, 5, dtype=torch.int64), None)
        >>> list(logits.shape), list(state.shape)
        ([2, 5, 10], [1, 2, 16])
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        cell: str = "lstm",
        hidden: int = 256,
        embedding: int = 64,
        layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, size in (("vocabulary", vocabulary), ("embedding", embedding)):
            if size < 1:
                raise ValueError(f"{name} is at least 1, got {size}")
        # Parameters are drawn in this order.
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.rnn = recurrent_layers(cell, embedding, hidden, layers, dropout)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits of the next token after each token.

        Args:
            x: Tokens, any integers [B, K].
            state: From the call before; None at the start.

        Returns:
            float32 [B, K, V], and the state, L x B x H each.
        """
        hidden, state = self.rnn(self.dropout(self.embedding(x.long())), state)
        return self.head(self.dropout(hidden)), state


class ByteLanguageModel(LanguageModel):
    """A `LanguageModel` over the 256 values of a byte, which can write.

    Args:
        cell, hidden, embedding, layers, dropout: See `LanguageModel`.

    Example:
        >>> model = ByteLanguageModel(cell="gru", hidden=16)
        >>> logits, state = model(torch.zeros(2, 5, dtype=torch.uint8), None)
        >>> list(logits.shape), len(model.sample(b"def ", 3))
        ([2, 5, 256], 3)
    """

    def __init__(
        self, *, cell: str = "lstm", hidden: int = 256, embedding: int = 64, layers: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__(
            vocabulary=BYTES, cell=cell, hidden=hidden, embedding=embedding, layers=layers, dropout=dropout
        )

    @torch.no_grad()
    def sample(self, prompt: bytes, length: int, *, temperature: float = 0.8, seed: int = 0) -> bytes:
        """Bytes that the model writes after a prompt; the global random generators stay as they are.

        Args:
            prompt: At least one byte.
            length: How many bytes to write.
            temperature: By which the logits are divided: towards 0 the likeliest byte.
            seed: Another one gives another text.

        Raises:
            ValueError: The prompt is empty, the length negative, or the temperature not positive.
        """
        if not prompt or length < 0 or temperature <= 0:
            raise ValueError(
                "sampling needs a prompt of at least one byte, a length of at least 0 and a temperature above 0, got "
                f"{len(prompt)} bytes, length {length}, temperature {temperature}"
            )
        device = self.head.weight.device
        generator = torch.Generator().manual_seed(seed)
        training = self.training
        self.eval()
        try:
            written = bytearray()
            x = torch.tensor([list(prompt)], device=device)
            state = None
            for _ in range(length):
                logits, state = self(x, state)
                chances = torch.softmax(logits[0, -1].float().cpu() / temperature, 0)
                written.append(int(torch.multinomial(chances, 1, generator=generator)))
                x = torch.tensor([[written[-1]]], device=device)
        finally:
            self.train(training)
        return bytes(written)


def next_byte_loss(logits: Tensor, window: Window) -> Tensor:
    """Cross-entropy of `window["target"]`, the next byte or token, in nats.

    Args:
        logits: float [B, K, V].
        window: Its "target" is of integers [B, K] from 0 to V - 1.

    Returns:
        float [B, K], also where the mask is off.
    """
    target = window["target"].long()
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
