"""Ablations: what each part of OKDDip and DCKD is worth, and how many students it takes."""

from .accuracy import ABLATION, Sweep
from .index import figure

figure(
    "okddip_ablations",
    notebook="08",
    runs=[
        {"method": "okddip"},
        *({"method": "okddip", "attention": a} for a in ("random", "entropy", "mean", "symmetric")),
        {"method": "okddip", "two_level": False},
    ],
    kind=ABLATION,
)
figure(
    "dckd_ablations",
    notebook="08",
    runs=[
        {"method": "dckd"},
        {"method": "dckd", "reverse": False},
        {"method": "dckd", "collection": "avg"},
        {"method": "dckd", "collection": "avg", "reverse": False},
    ],
    kind=ABLATION,
)
figure(
    "group_size",
    notebook="08",
    runs=[{"method": k, "m": m} for k in ("okddip", "one") for m in (3, 4, 6, 8)],
    kind=Sweep("m", "group size m"),
)
figure(
    "dckd_students",
    notebook="08",
    runs=[{"method": "kd"}, *({"method": "dckd", "m": m} for m in (2, 3, 4, 5))],
    kind=Sweep("m", "students m"),
)
