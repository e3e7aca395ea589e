"""Where the tower begins: not at random, since random vision transformers need far more images than there are.

Three things that trained towers are known to have are given from the start: patches are seen along the directions in
which they differ most, places have waves for positions, and attention mixes like with like (queries and keys of one
head nearly agree, values are nearly minus what comes out of them; Trockman and Kolter, arXiv 2305.09828).

D the tower's width, N patches, Q numbers a patch.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionModel


def begin(vision: CLIPVisionModel, image_BCSS: torch.Tensor) -> None:
    """Sets the tower's first weights; `image_BCSS` are views as the training will show them."""
    inside = vision.vision_model
    _see_what_differs(inside.embeddings.patch_embedding, image_BCSS)
    _know_places(inside.embeddings.position_embedding)
    for layer in inside.encoder.layers:
        _attend_to_the_like(layer.self_attn)


def _see_what_differs(patching: nn.Conv2d, image_BCSS: torch.Tensor) -> None:
    """Principal components of patches, half as many as the width, shared out among all directions."""
    width, patch = patching.out_channels, patching.kernel_size[0]
    patch_NQ = F.unfold(image_BCSS, patch, stride=patch).transpose(1, 2).flatten(0, 1)
    centred_NQ = patch_NQ - patch_NQ.mean(0)
    _, strength, component_QK = torch.pca_lowrank(centred_NQ, width // 2, center=False)
    deviation_K = strength / len(patch_NQ) ** 0.5
    turn_DK = torch.linalg.qr(torch.randn(width, width // 2)).Q
    weight_DQ = turn_DK @ (component_QK / (deviation_K + 0.15 * deviation_K[0])).T
    patching.weight.data = weight_DQ.view_as(patching.weight).contiguous()


def _know_places(positions: nn.Embedding) -> None:
    """Sines and cosines of row and column; the class token's place keeps its random start."""
    n_places, width = positions.weight.shape[0] - 1, positions.weight.shape[1]
    side = math.isqrt(n_places)
    row_N, column_N = torch.arange(n_places) // side, torch.arange(n_places) % side
    speed = torch.exp(-torch.arange(width // 4) / (width // 4) * math.log(50.0))
    angles = [place[:, None] * speed for place in (row_N, column_N)]
    positions.weight.data[1:] = 0.5 * torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)


def _attend_to_the_like(attention: nn.Module) -> None:
    width, n_heads = attention.embed_dim, attention.num_heads
    head = width // n_heads
    for k in range(n_heads):
        left, right = _halves(0.7, 0.7, width)
        rows, scale = slice(k * head, (k + 1) * head), (head / width) ** 0.5
        attention.q_proj.weight.data[rows] = scale * left[:, :head].T
        attention.k_proj.weight.data[rows] = scale * right[:, :head].T
    left, right = _halves(0.4, -0.4, width)
    attention.v_proj.weight.data, attention.out_proj.weight.data = right.T.contiguous(), left


def _halves(noise: float, unit: float, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two factors whose product is noise plus a multiple of the identity; the strongest directions come first."""
    whole_DD = noise * torch.randn(width, width) / width**0.5 + unit * torch.eye(width)
    left, strength, right = torch.linalg.svd(whole_DD)
    return left * strength.sqrt(), right.T * strength.sqrt()
