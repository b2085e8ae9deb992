"""Lists the cases that `make quick` leaves out: `python tests/measure.py LOG`.

LOG: what `pytest tests -m "not slow" -vv --durations=0` has printed. A case is long if its set-up,
call and tear-down together take more than LIMIT seconds there, and it is no golden value of less
than a second. The list goes to tests/long.txt.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

LIMIT = 0.25  # seconds


def main(log: str) -> None:
    seconds = defaultdict(float)
    for took, case in re.findall(
        r"^([\d.]+)s (?:call|setup|teardown) +(?:tests/)?(\S+::.+)$", Path(log).read_text(), re.M
    ):
        seconds[case] += float(took)
    golden = {case for case in seconds if case.startswith("test_golden.py") and seconds[case] < 1}
    long = sorted(case for case in seconds if seconds[case] > LIMIT and case not in golden)
    Path(__file__).with_name("long.txt").write_text("\n".join(long) + "\n")
    quick = sum(took for case, took in seconds.items() if case not in long)
    print(f"{len(long)} long cases; the others that were listed take {quick:.0f} s together")


if __name__ == "__main__":
    main(*sys.argv[1:])
