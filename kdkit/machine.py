"""What the machine gives a run: device, precision, threads, memory, signals.

All lines that only CUDA needs are here.
"""

import ctypes
import platform
import signal
import subprocess
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from .config import Run

PRECISION = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def machine(run: Run) -> tuple[torch.device, torch.dtype, str]:
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
            asked = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True,
                                   text=True)
            commit = asked.stdout.strip() or None
    name = torch.cuda.get_device_name() if device.type == "cuda" else cpu_name()
    return {"python": platform.python_version(), "torch": torch.__version__,
            "device": device.type, "processor": name, "commit": commit,
            "threads": torch.get_num_threads(), "precision": PRECISION[dtype]}


def cpu_name() -> str:
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.machine())
