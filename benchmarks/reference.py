"""Train the reference results: every run of the claims ledger and of the figures.

    KDKIT_RUNS=elsewhere python benchmarks/reference.py [--seeds N] [--workers N]

Ten seeds (0 to 9) for the runs of the ledger, three for those of the figures besides; --seeds
takes the first N of both, for a start. As soon as a run is finished its row is added to
benchmarks/reference.csv and the two files beside it. A run whose id has a row is not trained
again, with or without its record in the store; what was begun goes on where it was.
"""

import argparse
import sys

from kdkit.study import figures, reference, store, sweep
from kdkit.study.callbacks import Interrupted
from kdkit.study.papers import claims
from kdkit.study.plans import plan

SEEDS_OF_FIGURES = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=len(reference.SEEDS))
    parser.add_argument("--workers", type=int, help="processes, by default one per core")
    args = parser.parse_args()
    # What is of use early comes first: one seed of all, then the ledger seed by seed.
    wanted = claims.runs([0]) + figures.wanted(None, reference.PRESET, [0])
    wanted += claims.runs(range(args.seeds))
    wanted += figures.wanted(None, reference.PRESET, min(args.seeds, SEEDS_OF_FIGURES))
    plans = list({p.id: p for p in map(plan, wanted)}.values())
    known = reference.load()
    old = [known.find(p) for p in plans if p.id in known.rows]
    if changed := known.other_code(old):
        print(f"rows of other code of their class are kept: {', '.join(changed)}", file=sys.stderr)
    missing = [p for p in plans if p.id not in known.rows]
    print(f"{len(plans)} runs, {len(old)} of them have a row", file=sys.stderr)
    by_id = {p.id: p for p in missing}
    for planned in missing:  # trained before, and stopped before its row was written
        if record := store.find(planned):
            reference.append(record)

    def add(run_id: str) -> None:
        """The row of a run, if it is one of these and not only a teacher's."""
        if run_id in by_id:
            reference.append(store.find(by_id[run_id]))

    try:
        failed = sweep.sweep(missing, args.workers, on_done=add)
    except Interrupted as e:
        print(e, file=sys.stderr)
        return 130
    for title, why in failed.items():
        print(f"failed: {title}: {why}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
