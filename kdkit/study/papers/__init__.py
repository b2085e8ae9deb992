"""The published tables of both papers as data: one CSV row for each cell and each curve.

Sources: `okddip`, Chen et al., "Online Knowledge Distillation with Diverse Peers", AAAI 2020,
arXiv 1912.00350; `dckd`, Seo et al., "Deep Collective Knowledge Distillation", 2023,
arXiv 2304.08878. The numbers are as printed, and `note` says where the papers contradict
themselves (CONTRADICTION), are hard to believe (DOUBTFUL) or leave something open, which this kit
settles, marked "(choice)". A curve has no published number: none is read off a picture. `runs`
turns a row into its runs.
"""

from functools import cache
from pathlib import Path

import pandas as pd

PAPERS = ("okddip", "dckd")
LEVELS = ("paper", "table", "row", "column")
# What a cell is, and its published number.
PUBLISHED = (*LEVELS, "dataset", "networks", "metric", "statistic", "published", "published_std")
COLUMNS = (*PUBLISHED, "method", "student", "teacher", "params", "note")


@cache
def _load() -> pd.DataFrame:
    """All rows of both files, in the papers' order; the two number columns as float64."""
    frames = [
        pd.read_csv(Path(__file__).with_name(f"{paper}.csv"), dtype=str, keep_default_na=False)
        for paper in PAPERS
    ]
    for paper, frame in zip(PAPERS, frames, strict=True):
        if tuple(frame.columns) != COLUMNS or set(frame["paper"]) != {paper}:
            raise ValueError(
                f"{paper}.csv: seen columns {', '.join(frame.columns)}; "
                f"allowed: {', '.join(COLUMNS)}, with paper = {paper} in each row"
            )
    table = pd.concat(frames, ignore_index=True)
    for name in ("published", "published_std"):
        table[name] = pd.to_numeric(table[name].replace("", None)).astype("float64")
    return table


def cells(which: str | None = None) -> pd.DataFrame:
    """The cells that `which` names, as a new frame, in the papers' order.

    which: None for all, or "paper", "paper:table", "paper:table:row", "paper:table:row:column",
        for example "okddip:2:ResNet-32:DML". Tables are "1" and on, figures "fig2" and on; row and
        column are the printed labels, whole and in any case. Where the print has two columns or
        rows of one name they are "OKDDip (network)" and "OKDDip (branch)"; DCKD's column for a
        pair of networks is "teacher/student", for example "ResNet110/ResNet32".
    Returns: one row a cell, the columns of `COLUMNS`. `published` and `published_std` are float64
        in per cent, NaN where nothing is printed; `metric` says per cent of what (top1_error,
        top1, top5); all else is text, "" where it does not apply. `student`, `teacher` and
        `method` are registry names, `params` the method's fields as key=value;key=value.
    Raises: ValueError for a name that is not there; it lists the valid ones.
    """
    found = _load()
    if which is not None and not isinstance(which, str):
        raise ValueError(f"which: seen {which!r}; allowed: None or {':'.join(LEVELS)}")
    names = [] if which is None else [name.strip() for name in which.split(":")]
    if len(names) > len(LEVELS):
        raise ValueError(
            f"which: seen {which!r} with {len(names)} parts; allowed: {':'.join(LEVELS)}"
        )
    for depth, (level, name) in enumerate(zip(LEVELS, names, strict=False)):
        hit = found[found[level].str.casefold() == name.casefold()]
        if hit.empty:
            where = f" of {':'.join(names[:depth])}" if depth else ""
            raise ValueError(
                f"{level}{where}: seen {name!r}; allowed: {' | '.join(found[level].unique())}"
            )
        found = hit
    return found.reset_index(drop=True)
