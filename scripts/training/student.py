"""The network that is trained: a small CLIP image tower."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionConfig
from transformers import CLIPVisionModelWithProjection as CLIPVision

from deployments.encoder.files import CLIP_MEAN, CLIP_STD

IMAGE_SIZE = 112
PATCH_SIZE = 16
PATCHES_ON_SIDE = IMAGE_SIZE // PATCH_SIZE
CONFIG = CLIPVisionConfig(
    hidden_size=192,
    intermediate_size=768,
    num_hidden_layers=6,
    num_attention_heads=3,
    image_size=IMAGE_SIZE,
    patch_size=PATCH_SIZE,
    projection_dim=256,
    hidden_act="gelu",
)


class Student(nn.Module):
    """The encoder, and what only training needs: a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = CLIPVision(CONFIG)
        initialise(self.encoder)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, pixels: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Encode pictures, each from a part of its patches.

        Args:
            pixels: float32 `[n, 3, s, s]`, normalised.
            kept: the numbers of the patches of each that are used, `[n, k]`; None: all.

        Returns:
            Embeddings `[n, d]`, L2-normalised.
        """
        vision = self.encoder.vision_model
        tokens = vision.embeddings(pixels)
        if kept is not None:
            places = (kept + 1).unsqueeze(-1).expand(-1, -1, tokens.shape[2])
            tokens = torch.cat([tokens[:, :1], tokens.gather(1, places)], dim=1)
        hidden = vision.encoder(inputs_embeds=vision.pre_layrnorm(tokens)).last_hidden_state
        embeddings = self.encoder.visual_projection(vision.post_layernorm(hidden[:, 0]))
        return functional.normalize(embeddings.float(), dim=-1)


@torch.no_grad()
def initialise(encoder: CLIPVision) -> None:
    """Set the weights to what trained transformers have in common, as few photos don't teach it.

    Positions are sines and cosines in two dimensions. The products of query and key weights are
    near the identity, those of value and output weights near its negative (mimetic initialisation,
    Trockman and Kolter 2023, arXiv:2305.09828).
    """
    width, heads = CONFIG.hidden_size, CONFIG.num_attention_heads
    vision = encoder.vision_model
    side = PATCHES_ON_SIDE
    frequencies = 1 / 100 ** torch.linspace(0, 1, width // 4)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    waves = [
        wave(axis.flatten()[:, None] * frequencies)
        for axis in (x, y)
        for wave in (torch.sin, torch.cos)
    ]
    positions = vision.embeddings.position_embedding.weight
    positions.zero_()
    positions[1:] = 0.3 * torch.cat(waves, dim=1)
    vision.embeddings.class_embedding.normal_(std=0.02)

    size = width // heads
    for layer in vision.encoder.layers:
        attention = layer.self_attn
        for head in range(heads):
            rows = slice(head * size, (head + 1) * size)
            query, key = factors_near_identity(width, size, noise=0.7, identity=0.7)
            attention.q_proj.weight[rows], attention.k_proj.weight[rows] = query.T, key.T
        out, value = factors_near_identity(width, width, noise=0.4, identity=-0.4)
        attention.v_proj.weight.copy_(value.T)
        attention.out_proj.weight.copy_(out)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
            linear.bias.zero_()


def factors_near_identity(
    width: int, rank: int, *, noise: float, identity: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two `[width, rank]` whose product `a @ b.T` is nearest to noise plus identity.

    Args:
        noise: standard deviation of the noise, times the root of `width`.
        identity: factor of the identity.
    """
    matrix = noise * torch.randn(width, width) / width**0.5 + identity * torch.eye(width)
    u, s, v = torch.linalg.svd(matrix)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, v[:rank].T * root


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Normalise uint8 `[n, 3, s, s]` to float32, as the encoder's preprocessor config says."""
    mean, deviation = (
        torch.tensor(values, device=pixels.device).view(1, 3, 1, 1)
        for values in (CLIP_MEAN, CLIP_STD)
    )
    return (pixels.float() / 255 - mean) / deviation
