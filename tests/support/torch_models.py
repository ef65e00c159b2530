"""LeNet-5 and ResNet-20 in PyTorch, with the names and the order of the paper's models.

Imported only where torch is installed. Written from the papers: LeNet-5 with ReLU and max pooling;
ResNet-20 with two 3x3 convolutions a block and 1x1 convolutions as shortcuts; EvoNorm-S0 with a hard
sigmoid.
"""

import torch
from torch import nn
from torch.nn import functional


class LeNet5(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x):
        for conv in (self.conv1, self.conv2):
            x = functional.max_pool2d(functional.relu(conv(x)), 2)
        for layer in (self.fc1, self.fc2):
            x = functional.relu(layer(x.flatten(1)))
        return self.fc3(x)


class EvoNorm(nn.Module):
    """x * clamp(x / 6 + 1/2, 0, 1) / std of a group of channels, scaled and shifted."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x):
        groups = x.reshape(len(x), 8, -1)
        std = (groups.var(dim=2, unbiased=False, keepdim=True) + 1e-5).sqrt()
        gated = (x * (x / 6 + 0.5).clamp(0, 1)).reshape(groups.shape)
        return (gated / std).reshape(x.shape) * self.weight + self.bias


class Block(nn.Module):
    def __init__(self, width: int, channels: int, stride: int, norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, channels, 3, stride, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = norm(channels)
        self.downsample = nn.Sequential()
        if stride > 1:
            shortcut = nn.Conv2d(width, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, norm(channels))
        # EvoNorm is an activation itself, and nothing follows the sum then.
        self.act = nn.Identity() if norm is EvoNorm else nn.ReLU()

    def forward(self, x):
        y = self.act(self.bn1(self.conv1(x)))
        return self.act(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet20(nn.Module):
    def __init__(self, classes: int, norm=EvoNorm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = norm(16)
        self.act = nn.Identity() if norm is EvoNorm else nn.ReLU()
        stage = lambda before, after, stride: nn.Sequential(
            Block(before, after, stride, norm), *(Block(after, after, 1, norm) for _ in range(2))
        )
        self.layer1, self.layer2 = stage(16, 16, 1), stage(16, 32, 2)
        self.layer3 = stage(32, 64, 2)
        self.fc = nn.Linear(64, classes)

    def forward(self, x):
        x = self.act(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))
