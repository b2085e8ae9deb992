"""Tables in, sentences out: what the numbers of a figure say, computed from its table alone.

Other numbers, other sentences. A difference inside its 95 % interval is called not shown. Each
`say_*` gives the alt text first and then the findings.
"""

import numpy as np
import pandas as pd

from . import tables
from .tables import said


def verdict(what: str, other: str, row, unit: str = "points", digits: int = 2) -> str:
    """One sentence on a paired difference and whether it is shown. row: of `tables.paired`."""
    d, half, n = row["difference"], row["half_width"], int(row["pairs"])
    size = f"{abs(d):.{digits}f} {unit}".strip()
    seen = (
        f"{what} is {size} {'above' if d > 0 else 'below'} {other}"
        if d
        else f"{what} is level with {other}"
    )
    if n < 2:
        return f"{seen} in {n} seed: one seed gives no interval, so this is not shown."
    if row["shown"]:
        return f"{seen} (95 % interval ± {half:.{digits}f}, n = {n}): shown."
    return f"{seen}, inside its 95 % interval of ± {half:.{digits}f} (n = {n}): not shown."


def gap(ours: pd.Series, other: pd.Series) -> dict:
    """The difference of two rows, paired by seed."""
    a, b = (
        {int(k[5:]): float(row[k]) for k in row.index if k.startswith("seed ") and row[k] == row[k]}
        for row in (ours, other)
    )
    return tables.paired(a, b)


def each(table: pd.DataFrame, text: str) -> str:
    """`text` with every row's values put in."""
    return ", ".join(text.format(**row) for row in table.to_dict("records"))


def seeds(table: pd.DataFrame) -> str:
    """How many seeds, in words."""
    n = int(table["n"].max())
    return f"{n} seed{'s' if n > 1 else ''}"


def say_accuracy(table: pd.DataFrame) -> list[str]:
    """Every accuracy, then every difference to its control."""
    ours = table[table["method"] != ""]
    told = ", ".join(f"{r['label']} {said(r['mean'], r['sd'])}" for _, r in table.iterrows())
    return [
        f"Test accuracy in percent over {seeds(ours)}: {told}.",
        *(verdict(r["label"], r["control"], r) for _, r in ours.iterrows() if r["control"]),
    ]


def say_sweep(table: pd.DataFrame, x: str) -> list[str]:
    """Where each line is highest, and whether its ends differ by more than seeds do."""
    out = []
    for _, t in table.dropna(subset=[x]).groupby("method", sort=False):
        t = t.sort_values(x)
        first, best, last = t.iloc[0], t.loc[t["mean"].idxmax()], t.iloc[-1]
        name = tables.method_class(t["method"].iloc[0]).title
        out.append(f"{name} is best at {x} = {best[x]:g} with {said(best['mean'], best['sd'])} %.")
        if first[x] < last[x]:
            out.append(
                verdict(f"{name} with {x} = {last[x]:g}", f"{x} = {first[x]:g}", gap(last, first))
            )
    return [*say_accuracy(table), *out]


def say_curves(table: pd.DataFrame) -> list[str]:
    """First and last value of each curve; what training accuracy is above the probe's."""
    last = table[table["epoch"] == table["epoch"].max()]
    told = each(last, "{label} {quantity} {mean:.4g}").replace(" (%)", "")
    out = [f"Curves over {table['epoch'].max()} epochs, {seeds(table)}; at the end: {told}."]
    for name, t in last.groupby("label", sort=False):
        at = {r["quantity"]: r for _, r in t.iterrows()}
        if at.keys() >= {"training accuracy (%)", "probe accuracy (%)"}:
            out.append(
                verdict(
                    f"{name}'s training accuracy",
                    "that on the probe",
                    gap(at["training accuracy (%)"], at["probe accuracy (%)"]),
                )
            )
    for (name, what), t in table.groupby(["label", "quantity"], sort=False):
        if what == "probe accuracy (%)":
            top = t.loc[t["mean"].idxmax()]
            out.append(
                f"{name}'s probe accuracy is highest after epoch {top['epoch']:.0f} with "
                f"{top['mean']:.2f} %; the result is the last epoch's, not that one."
            )
    return out


def say_diversity(table: pd.DataFrame) -> list[str]:
    """The order at the end of training; each against the first kind of run, the upper bound."""
    last = table[table["epoch"] == table["epoch"].max()]
    order = last.sort_values("mean", ascending=False)
    told = ", ".join(
        f"{r['label']} {said(r['mean'], r['sd'], digits=4)}" for _, r in order.iterrows()
    )
    first = last.iloc[0]
    top = "has" if order["label"].iloc[0] == first["label"] else "has not"
    return [
        f"Mean distance between peers' predictions over the epochs, {seeds(table)}; at the "
        f"end, from the most diverse: {told}.",
        f"{first['label']}, whose students do not teach each other, {top} the most diverse "
        "peers at the end.",
        *(
            verdict(f"{r['label']}'s diversity", f"{first['label']}'s", gap(r, first), "", 4)
            for _, r in last.iloc[1:].iterrows()
        ),
    ]


def say_attention(table: pd.DataFrame) -> list[str]:
    """How far from uniform and from symmetric the attention is at the start and at the end."""
    n, E = table["peer"].max(), table["epoch"].max()

    def at(epoch):
        t = table[table["epoch"] == epoch]
        return (
            t["asymmetry"].abs().max(),
            (t["attention"] - 1 / n).abs().max(),
            t[t["peer"] == t["source"]]["attention"].mean(),
        )

    (first, _, _), (last, far, own) = at(1), at(E)
    return [
        f"Attention between {n} peers of {table['label'].iloc[0]} over {E} epochs; at the end "
        f"its largest asymmetry is {last:.3f} and its largest distance from 1/{n} {far:.3f}.",
        f"The largest asymmetry {'grew' if last > first else 'did not grow'} over training: "
        f"{first:.3f} after epoch 1, {last:.3f} after epoch {E} "
        f"({table['seed'].nunique()} seed(s)).",
        f"At the end a peer gives itself {own:.3f} on average, "
        f"{'more' if own > 1 / n else 'not more'} than the even share of {1 / n:.3f}.",
    ]


def say_ensembles(table: pd.DataFrame) -> list[str]:
    """What each ensemble gains, and whether the most diverse group gains most."""
    most, best = (table.loc[table[c].idxmax(), "label"] for c in ("diversity", "mean"))
    order = table["diversity"].rank().corr(table["mean"].rank())
    return [
        f"Mean accuracy of single students and of their ensemble in percent, {seeds(table)}: "
        f"{each(table, '{label} {single:.2f} → {ensemble:.2f}')}.",
        *(
            verdict(f"{r['label']}'s ensemble", "its single students", r)
            for _, r in table.iterrows()
        ),
        f"The most diverse peers are {most}'s; the largest gain is {best}'s "
        f"({'the same' if most == best else 'another'} group). Rank correlation of diversity "
        f"and gain over {len(table)} groups: {order:+.2f}.",
    ]


def say_correlation(table: pd.DataFrame) -> list[str]:
    """Students and collection against the teacher, at each temperature."""
    return [
        f"Mean number of classes above 1/K over the test images, {seeds(table)}: "
        f"{each(table, '{who} {mean:.3f} (T = {T:g})')}.",
        *(
            verdict(
                f"At T = {r['T']:g} the correlation number of {r['who'].lower()}",
                "the teacher's",
                r,
                "",
                3,
            )
            for _, r in table.iterrows()
            if r["control"]
        ),
    ]


def say_distributions(table: pd.DataFrame) -> list[str]:
    """Do entropy and correlation number order the two distributions alike?"""
    two = table.drop_duplicates("distribution")
    sign = np.sign(two[["entropy", "correlation_number"]].diff().iloc[1])
    told = each(
        two,
        "{distribution} has entropy {entropy:.3f} nats and correlation number {correlation_number}",
    )
    return [
        f"Two distributions over ten classes: {told}.",
        f"Entropy and correlation number order them "
        f"{'alike' if sign.nunique() == 1 else 'in opposite ways'}: only the second counts how "
        "many classes stand out.",
    ]


def say_reliability(table: pd.DataFrame) -> list[str]:
    """Each calibration error, and which way it errs."""
    out = []
    for name, t in table.groupby("label", sort=False):
        gap = float((t["share"] * (t["confidence"] - t["accuracy"])).sum() / t["share"].sum())
        out.append(
            f"{name} is {100 * abs(gap):.1f} points {'over' if gap > 0 else 'under'}"
            f"confident on average; expected calibration error {t['ece'].iloc[0]:.3f}."
        )
    firsts = table.drop_duplicates("label")
    best = firsts.loc[firsts["ece"].idxmin(), "label"]
    return [
        f"Accuracy against confidence; expected calibration errors over {seeds(table)}: "
        f"{each(firsts, '{label} {ece:.3f}')}.",
        *out,
        f"The smallest error is {best}'s.",
    ]


def say_class_maximum(table: pd.DataFrame) -> list[str]:
    """The peak that the student has most above its teacher, and how many it has more."""
    true, rest = table["true"].iloc[0], table[table["class"] != table["true"]]
    top = rest.loc[rest["above"].idxmax()]
    more = int((rest["above"] > 0).sum())
    side = "above" if top["above"] > 0 else "not above"
    return [
        f"Largest probabilities that any test image of class {true} gets, at tau = "
        f"{top['tau']:g}, seed {top['seed']}: for {top['class']} {top['student']:.3f} from the "
        f"student and {top['teacher']:.3f} from the teacher.",
        f"The student's peak for {top['class']} is {side} the teacher's: "
        f"{top['above']:+.3f}; images behind it: {top['images']}.",
        f"It is above the teacher for {more} of the {len(rest)} other classes "
        "(one student, one seed: a look, not a test).",
    ]
