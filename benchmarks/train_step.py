"""Images per second of kdkit's training loop against the plain loop that people write.

    python benchmarks/train_step.py [--json] [--case NAME] [--steps N] [--turns N] [--threads N]

Three cases at 3 x 32 x 32 pixels and 100 classes, on random images: a baseline ResNet-32, KD from
ResNet-110 to ResNet-32, OKDDip with four branches of ResNet-32. The plain loop: a DataLoader with
two persistent workers and torchvision's transforms on PIL images, fp32, contiguous layout, SGD that
is not fused, the teacher as it was trained, `.item()` for the loss and the accuracies at each step.

Each side lives in a process of its own, because kdkit asks the allocator to keep freed memory and
the plain loop must not profit from that; the two take turns (plain, kdkit, plain, ...), so that
other work on the machine meets both. Images per second are medians over the turns, after a warm-up;
`ratio` is kdkit's over the plain loop's. `kernel_share` is the part of a kdkit step that its
convolution operators take (torch.profiler's self time, forward and backward, teacher included,
median of three steps): ratio / kernel_share is what remains if all else cost nothing.
"""

import argparse
import json
import multiprocessing
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from kdkit import train
from kdkit.callbacks import Finite, History
from kdkit.data import tensors
from kdkit.models import build
from kdkit.study.plans import build_students, plan, preset
from kdkit.study.sources import SETS

CASES = {"baseline": 2.5, "kd": 2.5, "okddip": 2.0}  # the ratio that is aimed at
LIKE, K, T, M = SETS["cifar100"], 100, 3.0, 4  # mean and deviation, classes, temperature, branches
CONVOLUTION = re.compile(r"(aten|mkldnn)::\w*conv")  # operators, as the profiler names them


def images(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images (n, 32, 32, 3) uint8 and labels (n,) int64, the same for both sides."""
    draw = np.random.default_rng(0)
    return draw.integers(256, size=(n, 32, 32, 3), dtype=np.uint8), draw.integers(K, size=n)


# The plain loop, as a script of its own would write it ----------------------------------------


class Pictures(Dataset):
    """PIL images with CIFAR's usual transforms."""

    def __init__(self, n: int):
        self.x, self.y = images(n)
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(LIKE.mean, LIKE.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.x[i])), int(self.y[i])


class Block(nn.Module):
    def __init__(self, c_in: int, c: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c)
        self.conv2 = nn.Conv2d(c, c, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            None
            if c_in == c
            else nn.Sequential(nn.Conv2d(c_in, c, 1, stride, bias=False), nn.BatchNorm2d(c))
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """CIFAR's ResNet, or `branches` of them that share all but the last stage."""

    def __init__(self, name: str, branches: int = 1):
        super().__init__()
        n = (int(name.removeprefix("resnet")) - 2) // 6

        def stage(c_in, c, stride):
            return nn.Sequential(Block(c_in, c, stride), *(Block(c, c, 1) for _ in range(n - 1)))

        stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        self.trunk = nn.Sequential(*stem, stage(16, 16, 1), stage(16, 32, 2))
        self.branches = nn.ModuleList(
            nn.Sequential(stage(32, 64, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            for _ in range(branches)
        )
        self.fcs = nn.ModuleList(nn.Linear(64, K) for _ in range(branches))

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        f = self.trunk(x)
        h = [branch(f) for branch in self.branches]
        return [fc(v) for fc, v in zip(self.fcs, h, strict=True)], h


def distil(z: Tensor, target: Tensor) -> Tensor:
    """T^2 KL(softmax(target / T) || softmax(z / T)) of logits (B, K)."""
    q = F.softmax(target / T, 1) + 1e-7
    return T * T * F.kl_div(F.log_softmax(z / T, 1), q, reduction="batchmean")


def okddip_loss(
    zs: list[Tensor], hs: list[Tensor], y: Tensor, query: nn.Module, key: nn.Module, weight: float
) -> Tensor:
    """zs, hs: logits (B, K) and pooled features (B, D) of the peers and, last, of the leader."""
    loss = sum(F.cross_entropy(z, y) for z in zs)
    z, h = torch.stack(zs[:-1], 1), torch.stack(hs[:-1], 1)  # (B, m-1, K), (B, m-1, D)
    A = F.softmax(torch.bmm(query(h), key(h).transpose(1, 2)), -1)  # (B, m-1, m-1)
    targets = torch.bmm(A, z)  # (B, m-1, K)
    for a in range(len(zs) - 1):
        loss = loss + weight * distil(zs[a], targets[:, a])
    return loss + weight * distil(zs[-1], z.mean(1))


def plain(case: str, o: argparse.Namespace) -> Callable[[int], None]:
    """The plain loop, as a function that takes so many steps."""
    loop = plain_loop(case, o)
    return lambda steps: [next(loop) for _ in range(steps)]


def plain_loop(case: str, o: argparse.Namespace) -> Iterator[None]:
    """The plain loop; one `next` is one step."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = DataLoader(
        Pictures(o.images),
        o.batch,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    net = ResNet(o.student, M if case == "okddip" else 1).to(device).train()
    teacher = ResNet(o.teacher).to(device).eval() if case == "kd" else None
    extra = [nn.Linear(64, 8, bias=False).to(device) for _ in range(2)] if case == "okddip" else []
    wanted = [p for module in (net, *extra) for p in module.parameters()]
    optimizer = torch.optim.SGD(wanted, 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    while True:
        for x, y in loader:
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            zs, hs = net(x)
            if case == "okddip":
                loss = okddip_loss(zs, hs, y, *extra, 0.0067)  # the ramp-up's first value
            else:
                loss = F.cross_entropy(zs[0], y)
            if teacher:
                with torch.no_grad():
                    target = teacher(x)[0][0]
                loss = loss + distil(zs[0], target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            for z in zs:
                (z.argmax(1) == y).float().mean().item()
            yield


# kdkit's loop -----------------------------------------------------------------------------------


def state_of(case: str, o: argparse.Namespace) -> train.State:
    """The trainer's own set-up, with what `fit` keeps of each step; random images stand for the
    data, an untrained net for the teacher."""
    planned = plan(
        preset(
            "okddip_paper",
            method=case,
            student=o.student,
            teacher=o.teacher,
            batch=o.batch,
            threads=o.threads,
            compile=o.compile,
        )
    )
    x, y = images(o.images)
    x = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    names = tuple(map(str, range(K)))
    data = tensors(x, y, x[:K], y[:K], names=names, mean=LIKE.mean, std=LIKE.std)
    students = build_students(planned, data.shape, K)
    teacher = trained(build(o.teacher, 3, K)) if planned.teacher else None
    state = train.prepare(planned.method, students, data, teacher, planned.run, 0, "auto")
    state.callbacks = [Finite(), History()]
    return state


def trained(net: nn.Module) -> nn.Module:
    """The network, frozen, with the statistics of random images, as if it had been trained."""
    for m in net.train().modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None  # the mean of what it sees
    with torch.no_grad():
        net(torch.randn(32, 3, 32, 32))
    return net.eval().requires_grad_(False)


def kdkit(case: str, o: argparse.Namespace) -> Callable[[int], None]:
    """kdkit's loop, as a function that takes so many steps: the last ones of an epoch."""
    torch.manual_seed(0)
    state = state_of(case, o)

    def take(steps: int) -> None:
        while steps:
            now = min(steps, state.steps)
            state.step = state.steps - now
            train.train_epoch(state)
            steps -= now

    return take


# Measuring --------------------------------------------------------------------------------------


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(take: Callable[[int], None], steps: int) -> float:
    """Seconds that so many steps take."""
    began = time.perf_counter()
    take(steps)
    wait()
    return time.perf_counter() - began


def kernel_share(take: Callable[[int], None]) -> float:
    """The part of one step that the convolution operators take, 0 to 1."""
    kinds, clock = [torch.profiler.ProfilerActivity.CPU], "self_cpu_time_total"
    if torch.cuda.is_available():
        kinds, clock = [*kinds, torch.profiler.ProfilerActivity.CUDA], "self_device_time_total"
    with torch.profiler.profile(activities=kinds) as seen:
        seconds = timed(take, 1)
    spent = sum(getattr(e, clock) for e in seen.key_averages() if CONVOLUTION.match(e.key))
    return spent / 1e6 / seconds


def serve(pipe, side, case: str, o: argparse.Namespace) -> None:
    """One side in a process of its own: a number n asks for n steps, "share" for kernel_share,
    None ends it."""
    os.dup2(2, 1)  # what libraries print must not get between the JSON
    torch.set_num_threads(o.threads)
    take = side(case, o)
    timed(take, 2)  # warm-up
    pipe.send("ready")
    for asked in iter(pipe.recv, None):
        pipe.send(kernel_share(take) if asked == "share" else timed(take, asked))


@contextmanager
def started(side, case: str, o: argparse.Namespace):
    """A function that asks that side and waits for its answer."""
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve, args=(there, side, case, o))
    process.start()
    there.close()

    def ask(what=None):
        try:
            if what is not None:
                here.send(what)
            return here.recv()
        except (EOFError, BrokenPipeError) as e:
            raise SystemExit(f"the {side.__name__} side of {case!r} ended: see above") from e

    try:
        yield ask
        here.send(None)
        process.join()
    finally:
        process.terminate()


def measure(case: str, o: argparse.Namespace) -> dict:
    """One row of the result."""
    seconds = {plain: [], kdkit: []}
    with started(plain, case, o) as ask_plain, started(kdkit, case, o) as ask_kdkit:
        ask_plain(), ask_kdkit()  # both are ready
        for _ in range(o.turns):
            seconds[plain].append(ask_plain(o.steps))
            seconds[kdkit].append(ask_kdkit(o.steps))
        share = statistics.median(ask_kdkit("share") for _ in range(3))
    theirs, ours = (o.steps * o.batch / statistics.median(s) for s in seconds.values())
    return {
        "name": case,
        "kdkit_img_s": ours,
        "plain_img_s": theirs,
        "ratio": ours / theirs,
        "kernel_share": share,
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--json", action="store_true", help="print JSON and nothing else")
    p.add_argument("--case", action="append", choices=CASES, help="only this one; may be repeated")
    p.add_argument("--steps", type=int, default=2, help="steps a turn")
    p.add_argument("--turns", type=int, default=7, help="turns a side")
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--images", type=int, default=2000)
    p.add_argument("--student", default="resnet32", help="a CIFAR ResNet with basic blocks")
    p.add_argument("--teacher", default="resnet110", help="another one")
    p.add_argument("--compile", action="store_true", help="kdkit's side with torch.compile")
    o = p.parse_args()
    for name in ("steps", "turns", "threads", "batch"):
        if getattr(o, name) < 1:
            p.error(f"--{name} {getattr(o, name)}: must be at least 1")
    if o.images < o.batch:
        p.error(f"--images {o.images}: must be at least the batch, {o.batch}")
    rows = [measure(case, o) for case in o.case or CASES]
    if o.json:
        print(json.dumps({"cases": rows}))
        return
    print(f"torch {torch.__version__}, {o.threads} thread(s), batch {o.batch}; images per second")
    print(
        f"{'case':10}{'kdkit':>9}{'plain':>9}{'ratio':>7}{'aim':>6}{'kernel_share':>14}"
        f"{'ratio/share':>13}"
    )
    for r in rows:
        print(
            f"{r['name']:10}{r['kdkit_img_s']:9.1f}{r['plain_img_s']:9.1f}{r['ratio']:7.2f}"
            f"{CASES[r['name']]:6.1f}{r['kernel_share']:14.2f}"
            f"{r['ratio'] / r['kernel_share']:13.2f}"
        )


if __name__ == "__main__":
    sys.exit(main())
