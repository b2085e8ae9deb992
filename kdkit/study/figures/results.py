"""Every method side by side: the figure that the README shows."""

import pandas as pd

from .accuracy import say_accuracy
from .index import figure


def say_results(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> list[str]:
    """The accuracies; then which methods are shown to be above or below their controls, and for the
    others the smallest difference that could have been. table, reference: of `accuracy_table`."""
    sentences = say_accuracy(table)[:1]
    if reference is not None and not (table["pairs"] > 1).any():
        table = reference
    compared = table[table["control"] != ""]
    judged = compared[compared["pairs"] > 1]
    shown, side = judged["shown"].astype(bool), judged["difference"] > 0
    for what, rows in (("above", judged[shown & side]), ("below", judged[shown & ~side])):
        each = [
            f"{row['label']} ({row['difference']:+.2f} ± {row['half_width']:.2f})".replace("-", "−")
            for _, row in rows.iterrows()
        ]
        if len(judged):
            sentences.append(f"Shown {what} the control: {', '.join(each) or 'none'}.")
    open_ = [f"{r['label']} ({r['half_width']:.2f})" for _, r in judged[~shown].iterrows()]
    if open_:
        sentences.append(
            "Not shown, with the smallest difference that these seeds could have shown: "
            f"{', '.join(open_)}."
        )
    if lacking := len(compared) - len(judged):
        sentences.append(
            f"{lacking} of {len(compared)} differences have one seed, which gives no interval and "
            "so no verdict."
        )
    return sentences


@figure(
    "results",
    notebook="10",
    runs=[
        {"method": "baseline"},
        {"method": "kd"},
        *({"method": m} for m in ("fitnet", "at", "ft", "ofd", "reviewkd")),
        *({"method": m} for m in ("rkd", "cc", "crd", "crd_kd")),
        *({"method": m} for m in ("ind", "cl_ilr", "one", "okddip")),
        {"method": "ind", "based": "network"},
        {"method": "dml"},
        {"method": "kdcl"},
        {"method": "okddip", "based": "network"},
        {"method": "okddip_kd"},
        *({"method": m} for m in ("dckd", "edckd", "ensembled_student")),
    ],
)
class Results:
    say = say_results
