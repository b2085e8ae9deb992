"""Make lesson.npz from Fashion-MNIST's four original files.

    python benchmarks/make_lesson.py FOLDER [--out kdkit/assets/lesson.npz]

FOLDER holds the four .gz files, as their authors publish them or as Debian's dataset-fashion-mnist
installs them. Debian has taken the file name and time out of the gzip headers and left the rest; so
the published header is put back before the MD5 is compared with torchvision's list. The arrays:
  x (5000, 28, 28), y (5000,): the first 500 training images of each class in file order, dealt out
    class by class (0, 1, ..., 9, 0, 1, ...), so that every tenth prefix is balanced;
  x_test (10000, 28, 28), y_test (10000,): all test images in file order;
  train_index (5000,) int32: where each of x stands in the training file.
The same files give the same bytes each time (with the same zlib): zip members carry no time.
"""

import argparse
import hashlib
import os
import struct
import sys
from pathlib import Path

import numpy as np
import torch

TIMES = {"train": 1504176606, "t10k-": 1504176627}  # published headers: 2017-08-31 10:50 UTC


def published_md5(path: Path) -> str:
    """MD5 of a .gz file after its gzip header is made the published one (name and time)."""
    raw, name = path.read_bytes(), path.stem.encode() + b"\0"
    body = raw[10 + len(name) :] if raw[3:4] == b"\x08" else raw[10:]  # flag 8: a name follows
    head = b"\x1f\x8b\x08\x08" + struct.pack("<IBB", TIMES[path.name[:5]], 0, 3)
    return hashlib.md5(head + name + body, usedforsecurity=False).hexdigest()


def main(argv: list[str] | None = None) -> None:
    """Write lesson.npz. Errors: ValueError if a file is missing or its checksum differs."""
    root = Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(root))  # a checkout, installed or not
    from torchvision.datasets import FashionMNIST

    from kdkit.data import interleave
    from kdkit.study.files import read_idx

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds Fashion-MNIST's four .gz files")
    parser.add_argument("--out", type=Path, default=root / "kdkit/assets/lesson.npz")
    args = parser.parse_args(argv)
    for name, md5 in FashionMNIST.resources:
        path = args.folder / name
        if not path.exists():
            needed = ", ".join(n for n, _ in FashionMNIST.resources)
            raise ValueError(f"{path}: missing; needed are {needed}")
        if (seen := published_md5(path)) != md5:
            raise ValueError(f"{path}: MD5 {seen}, the published file has {md5}")
    x, y, x_test, y_test = (read_idx(args.folder / name) for name, _ in FashionMNIST.resources)
    index = interleave(torch.from_numpy(y))[:5000].numpy()
    part = args.out.with_name(f"{args.out.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as f:  # a handle, or numpy would add .npz to the name
            np.savez_compressed(
                f,
                x=x[index],
                y=y[index],
                x_test=x_test,
                y_test=y_test,
                train_index=index.astype(np.int32),
            )
        os.replace(part, args.out)
    finally:
        part.unlink(missing_ok=True)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
