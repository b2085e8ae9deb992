"""Put the numbers of figures/results.csv and figures/claims.csv into README's tables.

    python benchmarks/readme.py

Each table stands between <!-- NAME --> and <!-- end -->; nothing else is touched.
"""

import re
from pathlib import Path

import pandas as pd

from kdkit.study.figures.ledger import side_label
from kdkit.study.figures.style import mean_sd_text

ROOT = Path(__file__).resolve().parents[1]


def cell(value: float, digits: int = 2, sign: str = "") -> str:
    """A number, or nothing."""
    return "" if value != value else mean_sd_text(value, float("nan"), sign, digits)


def results() -> list[str]:
    """Accuracies of all methods and their differences to their controls."""
    lines = [
        "| method | n | mean (%) | deviation | control | difference | 95 % interval ± | shown |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for _, row in pd.read_csv(ROOT / "figures/results.csv").iterrows():
        control = row["control"] if isinstance(row["control"], str) else ""
        gap = cell(row["difference"], sign="+") if control else ""
        cells = [row["label"], int(row["n"]), cell(row["mean"]), cell(row["sd"]), control, gap]
        cells += [cell(row["half_width"]) if control else ""]
        cells += [("yes" if row["shown"] else "no") if control else ""]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def claims() -> list[str]:
    """The claims ledger."""
    lines = [
        "| paper | place | claim | better | worse | n | difference | ± | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for _, row in pd.read_csv(ROOT / "figures/claims.csv").iterrows():
        digits = 3 if row["metric"] == "diversity_over_training" else 2
        what = {"top1_deployed": "", "ensemble": " (ensemble)"}
        unit = what.get(row["metric"], f" ({row['metric'].replace('_', ' ')})")
        cells = [row["paper"], row["place"], row["claim"] + unit]
        cells += [side_label(row["better"]), side_label(row["worse"]), int(row["n"])]
        cells += [cell(row["difference"], digits, "+"), cell(row["half_width"], digits)]
        verdict = row["verdict"] if isinstance(row["verdict"], str) else ""
        cells += [f"**{verdict}**" if verdict not in ("", "not shown") else verdict]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def main() -> None:
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    for name, lines in {"results": results(), "claims": claims()}.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
        if not block.search(text):
            raise SystemExit(f"README.md has no place for {name}")
        body = "\n".join(lines) + "\n"
        text = block.sub(lambda found, body=body: found[1] + body + found[2], text)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
