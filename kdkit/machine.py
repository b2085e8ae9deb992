"""What the machine gives a run: device, precision, threads, memory, signals.

All lines that only CUDA needs are here.
"""

import copy
import ctypes
import platform
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .config import Run
from .models import Out, memory_format

PRECISION = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def chosen(run: Run) -> tuple[torch.device, torch.dtype, str]:
    """(device, dtype of autocast, why): why explains the precision."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        device, able = torch.device("cuda"), torch.cuda.is_bf16_supported()
    else:
        cpu = torch.cpu.get_capabilities()
        device, able = torch.device("cpu"), cpu.get("avx512_bf16") or cpu.get("amx_bf16")
        keep_memory()
    if run.precision != "auto":
        why = "the run says so"
    else:
        why = f"this {device.type} {'computes' if able else 'does not compute'} in bf16"
    half = run.precision == "bf16" or (run.precision == "auto" and able)
    return device, torch.bfloat16 if half else torch.float32, why


def keep_memory() -> None:
    """Ask glibc to keep freed memory: else each step maps and unmaps its activations anew, which
    costs 5 to 20 % of a step on the processor. Elsewhere this does nothing."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def cast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to `dtype`, off where that is fp32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def full(o: Out) -> Out:
    """Logits and pooled features in full precision; maps stay as autocast left them."""

    def up(v):
        return (
            tuple(map(up, v))
            if isinstance(v, tuple)
            else (v.float() if v.dtype == torch.bfloat16 else v)
        )

    return o._replace(logits=up(o.logits), pooled=up(o.pooled))


def placed(net: nn.Module, device: torch.device) -> Callable:
    """`net` on the device, in the memory format that suits it, which x is brought to as well."""
    fmt = memory_format(net)
    net.to(device, memory_format=fmt)
    return lambda x: net(x.contiguous(memory_format=fmt) if x.ndim == 4 else x)


def folded(net: nn.Module) -> nn.Module:
    """`net` with each conv -> BN pair of neighbours folded into the convolution, for eval only."""
    for module in list(net.modules()):
        children = list(module.named_children())
        for (name, conv), (name_bn, bn) in zip(children, children[1:], strict=False):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, bn))
                setattr(module, name_bn, nn.Identity())
    return net


def faster(net: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """`net` folded, if it then answers the same: its convolutions may be without batch norm."""
    x = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    plain, fast = net(x).logits, folded(copy.deepcopy(net))
    return fast if (fast(x).logits - plain).abs().max() <= 1e-3 * plain.abs().max() else net


@contextmanager
def pinned(run: Run):
    """The run's threads and a private global generator (dropout draws from it), put back after."""
    before = torch.get_num_threads()
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=cuda):
            if run.threads:
                torch.set_num_threads(run.threads)
            yield
    finally:
        torch.set_num_threads(before)


class Interrupted(KeyboardInterrupt):
    """The run was stopped from outside; it is saved and goes on when asked for again."""


@contextmanager
def stoppable():
    """Ctrl-C, a notebook's stop button and SIGTERM set an event; a second Ctrl-C acts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread alone
        return

    def heard(number, frame):
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {s: signal.signal(s, heard) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for s, handler in before.items():
            signal.signal(s, handler or signal.SIG_DFL)  # None: it was not set from Python


def environment(device: torch.device, dtype: torch.dtype) -> dict:
    """Versions, processor, commit, threads and precision, for a record."""
    here = Path(__file__).parents[1]
    commit = None
    if (here / ".git").exists():
        with suppress(OSError):
            asked = subprocess.run(
                ["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True
            )
            commit = asked.stdout.strip() or None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device.type,
        "processor": processor(device),
        "commit": commit,
        "threads": torch.get_num_threads(),
        "precision": PRECISION[dtype],
    }


def processor(device: torch.device) -> str:
    """What does the arithmetic, by its maker's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.machine())
