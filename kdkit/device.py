"""Device, precision and threads: all that only one kind of machine needs."""

import copy
import ctypes
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .models import Out, memory_format

PRECISION = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float64: "fp64"}


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device `name`; "auto" is CUDA where torch finds one, else the CPU.

    ValueError where this machine has no such device.
    """
    found = torch.cuda.is_available()
    try:
        device = torch.device(("cuda" if found else "cpu") if name == "auto" else name)
        torch.empty(0, dtype=torch.float32, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        why = str(e).partition("\n")[0]
        raise ValueError(f"device {str(name)!r}: not on this machine ({why})") from None
    if device.type == "cpu":
        keep_memory()
    return device


def choose_precision(precision: str, device: torch.device) -> tuple[torch.dtype, str]:
    """(the dtype to compute in, why): bf16 where "auto" asks and the device computes in it."""
    if precision != "auto":
        return next(dtype for dtype, name in PRECISION.items() if name == precision), (
            "the recipe says so"
        )
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported()
    else:
        cpu = torch.cpu.get_capabilities()
        able = cpu.get("avx512_bf16") or cpu.get("amx_bf16")
    why = f"this {device.type} {'computes' if able else 'does not compute'} in bf16"
    return torch.bfloat16 if able else torch.float32, why


def keep_memory() -> None:
    """Ask glibc to keep freed memory: else each step maps and unmaps its activations anew, which
    costs 5 to 20 % of a step on the processor. Elsewhere this does nothing."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to bf16; off for full precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def to_float32(out: Out) -> Out:
    """Logits and pooled features out of bf16; maps stay as autocast left them."""

    def cast(value):
        if isinstance(value, tuple):
            return tuple(map(cast, value))
        return value.float() if value is not None and value.dtype == torch.bfloat16 else value

    return out._replace(logits=cast(out.logits), pooled=cast(out.pooled))


def forward_on(net: nn.Module, device: torch.device, dtype: torch.dtype, size: int) -> Callable:
    """`net` on the device, in the memory format that suits it for images of this size, their longer
    side; returns x -> net(x), which brings x to that format as well. float64 changes the network's
    own parameters."""
    layout = memory_format(net, size)
    net.to(device, torch.float64 if dtype == torch.float64 else None, memory_format=layout)

    def forward(x):
        x = x.double() if dtype == torch.float64 else x
        return net(x.contiguous(memory_format=layout) if x.ndim == 4 else x)

    return forward


def fold(net: nn.Module) -> nn.Module:
    """`net` with each conv -> BN pair of neighbours folded into the convolution, for eval only."""
    for module in list(net.modules()):
        children = list(module.named_children())
        for (name, conv), (name_bn, bn) in zip(children, children[1:], strict=False):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, bn))
                setattr(module, name_bn, nn.Identity())
    return net


def fold_if_equal(net: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """A folded copy of `net` if it answers the same, else `net`: neighbours among its layers need
    not follow one another in its forward pass. shape: (C, H, W) of an image."""
    with torch.no_grad():
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(8, *shape, generator=draw, dtype=torch.float32, device="cpu")
        try:
            plain, folded = net(x), fold(copy.deepcopy(net))
            z, z_folded = (o.logits if isinstance(o, Out) else o for o in (plain, folded(x)))
        except (RuntimeError, AttributeError, TypeError):  # no CPU network, or it cannot be copied
            return net
    return folded if (z_folded - z).abs().max() <= 1e-3 * z.abs().max() else net


class _Shared:
    """What the whole process shares: the fits that are running and the settings to put back."""

    changed = threading.Condition()
    running: list[threading.Thread] = []  # one for each fit
    in_force = before = 0
    flags: tuple[bool, ...] = ()  # of CUDA, as they were before


def set_cuda_flags(tf32: bool, cudnn_tf32: bool, benchmark: bool) -> tuple[bool, ...]:
    """Set CUDA's TF32 and cuDNN's benchmark flags; returns the old ones. Without CUDA none acts."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = tf32, cudnn_tf32, benchmark
    return before


@contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """Use this many CPU threads (0: as many as now), TF32 and cuDNN's benchmark while a fit runs.

    The last fit to leave puts all back. One that needs another number of threads waits for that.
    """
    me, shared = threading.current_thread(), _Shared
    with shared.changed:
        alive = threading.enumerate()  # in a forked process this thread alone
        shared.running = [thread for thread in shared.running if thread in alive]
        if not shared.running:
            shared.before = torch.get_num_threads()
        wanted = threads or shared.before
        if me in shared.running and wanted != shared.in_force:
            raise ValueError(
                f"threads={threads}: a fit inside another one has its {shared.in_force} threads"
            )
        shared.changed.wait_for(lambda: not shared.running or wanted == shared.in_force)
        if not shared.running:
            shared.in_force, shared.before = wanted, torch.get_num_threads()
            shared.flags = set_cuda_flags(True, True, True)
        shared.running.append(me)
    mine = torch.get_num_threads()  # OpenMP has a number for each thread of the process
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        with shared.changed:
            shared.running.remove(me)
            torch.set_num_threads(mine if shared.running else shared.before)
            if not shared.running:
                set_cuda_flags(*shared.flags)
            shared.changed.notify_all()


@contextmanager
def plain_modes(device: torch.device) -> Iterator[None]:
    """Gradients on, inference mode and autocast off, whatever modes the caller has set."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast(device.type, enabled=False),
    ):
        yield


def processor(device: torch.device) -> str:
    """The model name of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.machine())
