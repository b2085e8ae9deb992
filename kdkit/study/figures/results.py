"""Every method side by side: the figure that the README shows."""

from .index import figure

figure(
    "results",
    notebook="09",
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
