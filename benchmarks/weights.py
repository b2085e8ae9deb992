"""Do the smoke runs still give the weights that are on the list?

    python benchmarks/weights.py                   compare with benchmarks/weights.json
    python benchmarks/weights.py --only kd,dckd    only these methods
    python benchmarks/weights.py --write FILE      train the same runs and write a list of them

The list holds every method and variant that the test suite trains on the smoke preset, with the
SHA-256 of the trained weights on the processor and with the torch that it names. Another processor
rounds otherwise: there, check the commit that last changed the list out beside this project and
make a list of its own first,

    PYTHONPATH=path/to/that/commit python benchmarks/weights.py --write here.json
    python benchmarks/weights.py --list here.json

It uses nothing but `kd.get` and `kd.preset`, so that it runs on every commit. Exit code 1 if any
differs.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

LIST = Path(__file__).with_name("weights.json")


def machine() -> dict[str, str]:
    """What the weights depend on beside the code."""
    processor = torch.cpu.get_capabilities().get("cpu_name", "unknown")
    kernels = torch.backends.cpu.get_cpu_capability()  # AVX2, AVX512, ...
    return {"processor": f"{processor}, {kernels}", "torch": torch.__version__}


def train(changes: dict) -> str:
    """The SHA-256 of the weights of one smoke run, trained now."""
    import kdkit as kd

    return kd.get(kd.preset("smoke", **changes)).meta["weights_sha256"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", type=Path, default=LIST, help="the list to compare with")
    parser.add_argument("--write", type=Path, help="write a list of the same runs")
    parser.add_argument("--only", help="methods, separated by commas")
    args = parser.parse_args()
    listed = json.loads(args.list.read_text())
    here, runs = machine(), listed["runs"]
    if args.only:
        runs = [r for r in runs if r["changes"]["method"] in args.only.split(",")]
    if not args.write and here != {k: listed[k] for k in here}:
        print(
            f"the list is of {listed['processor']}, torch {listed['torch']}; this is "
            f"{here['processor']}, torch {here['torch']}: make a list here first (--help)"
        )
        return 2
    os.environ["KDKIT_BATCH"] = "1"
    different = []
    with tempfile.TemporaryDirectory() as store:
        os.environ["KDKIT_RUNS"] = store
        for run in tqdm(runs, unit="run"):
            sha = train(run["changes"])
            if sha != run["weights_sha256"]:
                different.append(run["changes"])
            run["weights_sha256"] = sha
    if args.write:
        rows = ",\n  ".join(json.dumps(run) for run in runs)
        head = json.dumps({**here, "preset": "smoke"})[:-1]
        args.write.write_text(f'{head}, "runs": [\n  {rows}\n]}}\n')
        print(f"{len(runs)} runs written to {args.write}")
        return 0
    for changes in different:
        print("other weights:", json.dumps(changes))
    print(f"{len(runs) - len(different)} of {len(runs)} runs have the same weights")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
