"""channels_last only where oneDNN's kernels for it are sound: the rule, and real processes."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from kdkit.models import build, memory_format

LAST, PLAIN = torch.channels_last, torch.contiguous_format


def conv(channels, out, kernel, stride):
    return nn.Sequential(nn.Conv2d(channels, out, kernel, stride))


@pytest.mark.parametrize(
    "net, small, large",
    [
        (conv(3, 16, 3, 1), LAST, LAST),
        (conv(16, 32, 1, 2), LAST, LAST),
        (conv(8, 16, 1, 2), LAST, PLAIN),  # a block of 16 channels reads beyond 8
        (conv(12, 16, 1, 2), LAST, PLAIN),
        (conv(8, 16, 1, 1), LAST, LAST),
        (conv(8, 16, 3, 2), LAST, LAST),
        (conv(3, 4, 3, 1), PLAIN, PLAIN),  # a block of 8 channels writes beyond 4
        (conv(16, 20, 1, 1), PLAIN, PLAIN),
        (nn.Linear(3, 3), LAST, LAST),
    ],
)
def test_the_rule(net, small, large):
    assert [memory_format(net, size) for size in (20, 28, 32)] == [small] * 3
    assert [memory_format(net, size) for size in (33, 56, 224)] == [large] * 3


def test_the_kits_networks():
    assert memory_format(build("resnet8_w0.5", 1, 100), 20) is LAST
    assert memory_format(build("resnet8_w0.5", 3, 10), 64) is PLAIN
    assert memory_format(build("resnet18_imagenet", 3, 10), 224) is LAST


TRAIN = """
import sys, torch, kdkit as kd
width, size = sys.argv[1], int(sys.argv[2])
y = torch.arange(16) % 2
x = torch.randint(255, (16, 3, size, size), dtype=torch.uint8)
data = kd.data.tensors(x, y, x, y)
recipe = kd.Recipe(epochs=2, batch=8, threads=1)
kd.fit(kd.Baseline(), kd.models.build(f"resnet8_w{width}", 3, 2), data, recipe=recipe)
"""
CASES = [(width, size) for width in (0.25, 0.5, 0.75) for size in (32, 56, 64)]


@pytest.mark.parametrize("width, size", CASES)
def test_no_process_dies(width, size):
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(width), str(size)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-500:]
