"""EfficientNet-Lite0 in plain torch, with the tensor names of the published weights; a frozen source of features.

Takes images in 0..1, gives what it sees in each part (320) and in the whole (1280). Convolutions pad as TensorFlow's
"same" does, where the weights come from: an even size with stride 2 gets its padding on the right and at the bottom.

B batch, C channels, H height, W width, F features.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

# kernel, stride of the first block, expansion, channels out, blocks
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
WIDTH, PART_WIDTH = 1280, 320


class SameConv(nn.Conv2d):
    """A convolution without bias whose output has ceil(size / stride) pixels a side."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(n_in, n_out, kernel, stride, groups=groups, bias=False)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        pads: list[int] = []
        for size in (x_BCHW.shape[3], x_BCHW.shape[2]):
            total = max((math.ceil(size / self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x_BCHW, pads) if any(pads) else x_BCHW)


def product(n_in: int, n_out: int) -> nn.Conv2d:
    """The same linear map at every place."""
    return nn.Conv2d(n_in, n_out, 1, bias=False)


def norm(n: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(n, eps=1e-3)


class Block(nn.Module):
    """Expand, filter each channel, project; added to the input where shapes allow."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        n_wide = n_in * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and n_in == n_out
        if self.expands:
            self._expand_conv, self._bn0 = product(n_in, n_wide), norm(n_wide)
        self._depthwise_conv, self._bn1 = SameConv(n_wide, n_wide, kernel, stride, groups=n_wide), norm(n_wide)
        self._project_conv, self._bn2 = product(n_wide, n_out), norm(n_out)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x_BCHW))) if self.expands else x_BCHW
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x_BCHW + h if self.adds else h


class EfficientNetLite0(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2), norm(32)
        blocks: list[Block] = []
        n_in = 32
        for kernel, stride, expansion, n_out, n_blocks in STAGES:
            for k in range(n_blocks):
                blocks.append(Block(n_in, n_out, kernel, stride if k == 0 else 1, expansion))
                n_in = n_out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = product(n_in, WIDTH), norm(WIDTH)
        self._fc = nn.Linear(WIDTH, 1000)  # ImageNet's classes; here only so that the published weights fit

    def forward(self, image_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images in 0..1 to a map of features, a 32nd of the pixels a side, and features_BF of the whole."""
        x = F.relu6(self._bn0(self._conv_stem((image_BCHW * 255 - 127) / 128)))
        for block in self._blocks:
            x = block(x)
        return x, F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))


def load(weights: dict[str, torch.Tensor]) -> EfficientNetLite0:
    teacher = EfficientNetLite0()
    teacher.load_state_dict(weights)
    return teacher.eval().requires_grad_(False)
