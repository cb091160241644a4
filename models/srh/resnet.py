"""The ResNet family without its classifier: sizes of the encoder and the published (torchvision) key names.

Version 1.5: a bottleneck strides on its 3x3 convolution. Must not know heads, classes or where pixels come from.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn


def _conv3x3(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def _conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and -34). [B, C, H, W] to [B, planes, H/stride, W/stride]."""

    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(planes, planes, 1)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Residual plus shortcut, then ReLU."""
        shortcut = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        y_BCHW = self.relu(self.bn1(self.conv1(x_BCHW)))
        y_BCHW = self.bn2(self.conv2(y_BCHW))
        return self.relu(y_BCHW + shortcut)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided), 1x1 and a shortcut (ResNet-50 and -101). Gives [B, 4 * planes, H/stride, W/stride]."""

    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv1x1(inputs, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv3x3(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = _conv1x1(planes, planes * self.expansion)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Residual plus shortcut, then ReLU."""
        shortcut = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        y_BCHW = self.relu(self.bn1(self.conv1(x_BCHW)))
        y_BCHW = self.relu(self.bn2(self.conv2(y_BCHW)))
        y_BCHW = self.bn3(self.conv3(y_BCHW))
        return self.relu(y_BCHW + shortcut)  # type: ignore[no-any-return]


STAGES: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}
"""Block type and blocks per stage (He et al. 2016, table 1)."""


class ResNet(nn.Module):
    """float32 [B, 3, H, W] to the embedding [B, `embedding_dim`], the mean over the last stage's positions.

    `width` is the number of channels after the stem (64 as published); `embedding_dim` = width * 8 * expansion.
    Raises ValueError for an unknown `encoder`.
    """

    def __init__(self, encoder: str, width: int = 64) -> None:
        super().__init__()
        if encoder not in STAGES:
            raise ValueError(f"unknown encoder {encoder!r}; known: {', '.join(STAGES)}")
        block, (n1, n2, n3, n4) = STAGES[encoder]
        self.embedding_dim = width * 8 * block.expansion
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(block, width, width, n1, stride=1)
        self.layer2 = _stage(block, width * block.expansion, width * 2, n2, stride=2)
        self.layer3 = _stage(block, width * 2 * block.expansion, width * 4, n3, stride=2)
        self.layer4 = _stage(block, width * 4 * block.expansion, width * 8, n4, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Stem, four stages, global average."""
        y_BCHW = self.maxpool(self.relu(self.bn1(self.conv1(x_BCHW))))
        y_BCHW = self.layer4(self.layer3(self.layer2(self.layer1(y_BCHW))))
        return torch.mean(y_BCHW, dim=(2, 3))


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, planes: int, count: int, stride: int
) -> nn.Sequential:
    outputs = planes * block.expansion
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(_conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
    first = block(inputs, planes, stride, downsample)
    return nn.Sequential(first, *(block(outputs, planes, 1, None) for _ in range(count - 1)))
