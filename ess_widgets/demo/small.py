"""A small trained language model that ships inside the package, so that the demo always opens on something trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, rms_norm, scaled_dot_product_attention

__all__ = ["ByteTokenizer", "SmallConfig", "SmallLM", "load_small", "small_metadata"]

WEIGHTS = Path(__file__).with_name("weights") / "small.safetensors"


class ByteTokenizer:
    r"""One token per UTF-8 byte; byte 0 is the end-of-text token.

    >>> tokenizer = ByteTokenizer()
    >>> tokenizer.encode("To be<|endoftext|>")
    [84, 111, 32, 98, 101, 0]
    >>> tokenizer.decode([84, 111, 0])
    'To<|endoftext|>'
    """

    vocab_size = 256
    eos_token = "<|endoftext|>"
    eos_token_id = 0

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, each in ``[0, 256)``."""
        return list(text.replace(self.eos_token, "\0").encode("utf-8"))

    def decode(self, ids: list[int] | Tensor | int) -> str:
        """Text of ``ids``; bytes that are not UTF-8 become U+FFFD."""
        flat = torch.as_tensor(ids).reshape(-1).tolist()
        return bytes(flat).decode("utf-8", errors="replace").replace("\0", self.eos_token)


class SmallConfig:
    """Sizes of a `SmallLM`; the defaults are those of the weights in the package."""

    def __init__(self, *, vocab: int = 256, width: int = 128, layers: int = 4, heads: int = 4) -> None:
        if width % heads or (width // heads) % 2:
            raise ValueError(f"width {width} must be an even multiple of heads {heads}: rotations take pairs")
        self.vocab, self.width, self.layers, self.heads = vocab, width, layers, heads

    def to_dict(self) -> dict[str, int]:
        """The sizes as plain integers."""
        return dict(vars(self))


def _rotate(x: Tensor) -> Tensor:
    """Rotary positions for ``x`` of shape ``(batch, heads, length, size)``."""
    length, half = x.shape[-2], x.shape[-1] // 2
    frequency = 10_000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.arange(length, device=x.device, dtype=torch.float32)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    """Causal softmax attention with rotary positions; ``(batch, length, width)`` in and out."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = scaled_dot_product_attention(_rotate(q), _rotate(k), v, is_causal=True)
        y = y.transpose(1, 2).reshape(batch, length, width)
        return self.out(y)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and a feed-forward network, each on the normalised residual stream."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.up = nn.Linear(config.width, 4 * config.width, bias=False)
        self.down = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(rms_norm(x, x.shape[-1:]))
        return x + self.down(gelu(self.up(rms_norm(x, x.shape[-1:]))))  # type: ignore[no-any-return]


class SmallLM(nn.Module):
    """A byte-level transformer with tied embeddings.

    ``model(input_ids)`` takes ``(batch, length)`` integers and returns logits of shape ``(batch, length, vocab)``.
    """

    def __init__(self, config: SmallConfig | None = None) -> None:
        super().__init__()
        self.config = config or SmallConfig()
        self.embed = nn.Embedding(self.config.vocab, self.config.width)
        self.layers = nn.ModuleList(Block(self.config) for _ in range(self.config.layers))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return rms_norm(x, x.shape[-1:]) @ self.embed.weight.T


def small_metadata(path: Path = WEIGHTS) -> dict[str, Any]:
    """What the training recorded beside the weights: seed, corpus, steps, losses in nats per byte, sizes."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {key: json.loads(value) for key, value in file.metadata().items()}


def load_small(path: Path = WEIGHTS) -> tuple[SmallLM, ByteTokenizer]:
    """Load the packaged model, in evaluation mode, in float32 (stored as float16), on the CPU.

    Returns
    -------
    (SmallLM, ByteTokenizer)
    """
    from safetensors.torch import load_file

    model = SmallLM(SmallConfig(**small_metadata(path)["config"]))
    model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return model.eval(), ByteTokenizer()
