"""The papers' tables as data: layout, digits, labels and notes."""

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

from kdkit.study import papers
from kdkit.study.papers import cells

# rows x columns as printed, or the lengths of ragged rows
LAYOUT = {
    "okddip": {
        "1": 5 * 7,
        "2": 5 * 7,
        "3": 6,
        "4": 3 * 4,
        "5": 6,
        "6": 2 * 5,
        "7": 5 * 3,
        "8": 5 * 3,
        "9": 5 * 4,
        "10": 7 * 2,
        "fig2": 4 * 2,
        "fig3": 3 * 6,
        "fig4": 4 * 2,
    },
    "dckd": {
        "1": 2 * 12,
        "2": 15 * 7,
        "3": 15 * 6,
        "4": 2 * 10,
        "5": 5 * 3,
        "6": 4 * 3,
        "7": 2 + 3 + 4 + 5,
        "8": 8 * 7,
        "fig2": 2,
        "fig3": 2,
        "fig4": 2,
    },
}
METHODS = (
    "baseline kd ind dml cl_ilr one okddip okddip_kd dckd edckd ensembled_student fitnet at "
    "rkd ft cc ofd crd crd_kd reviewkd kdcl"
).split()
NETWORKS = {
    "okddip": set(
        "resnet32 resnet110_bottleneck wrn_20_8_bottleneck vgg16_okddip densenet_40_12 "
        "resnet34_imagenet".split()
    ),
    "dckd": set(
        "resnet20 resnet32 resnet56 resnet110 resnet8x4 resnet32x4 resnet50 wrn_16_2 "
        "wrn_40_1 wrn_40_2 vgg8 vgg13 mobilenetv2 shufflenetv1 shufflenetv2 "
        "resnet18_imagenet resnet34_imagenet".split()
    ),
}
STATISTICS = {
    "mean of students",
    "leader",
    "student",
    "teacher",
    "ensemble",
    "mean of pairs",
    "ensemble of 4 independent runs",
    *(f"sorted student {k}" for k in range(1, 6)),
}
NEEDS_TEACHER = set(
    "kd okddip_kd dckd edckd ensembled_student kdcl fitnet at rkd ft cc ofd crd "
    "crd_kd reviewkd".split()
)

# typed from the papers by hand: "paper:table:row:column", value, deviation ("" = none printed)
TYPED = """
okddip:1:DenseNet-40-12:OKDDip (network)|5.94|0.05
okddip:1:DenseNet-40-12:OKDDip (branch)|6.48|0.12
okddip:1:ResNet-32:Ind|5.99|0.15
okddip:1:VGG-16:CL-ILR|6.22|0.10
okddip:1:ResNet-110:DML|5.68|0.03
okddip:1:WRN-20-8:Baseline|5.27|0.06
okddip:1:WRN-20-8:ONE|5.29|0.02
okddip:2:DenseNet-40-12:Baseline|28.97|0.23
okddip:2:ResNet-32:DML|26.47|0.26
okddip:2:ResNet-32:OKDDip (network)|25.40|0.08
okddip:2:ResNet-32:OKDDip (branch)|25.63|0.14
okddip:2:VGG-16:ONE|25.63|0.03
okddip:2:ResNet-110:CL-ILR|21.56|0.09
okddip:2:WRN-20-8:Baseline|22.50|0.44
okddip:2:WRN-20-8:OKDDip (branch)|20.06|0.05
okddip:3:ResNet-34:Baseline|26.76|
okddip:3:ResNet-34:ONE|25.92|
okddip:3:ResNet-34:OKDDip (network)|25.42|
okddip:3:ResNet-34:OKDDip (branch)|25.60|
okddip:4:VGG-16:Ind|25.62|
okddip:4:ResNet-32:CL-ILR|27.01|
okddip:4:ResNet-110:OKDDip|19.54|
okddip:5:ResNet-32:w/o SA (random)|28.24|0.16
okddip:5:ResNet-32:w/o SA (asymmetry)|26.05|0.17
okddip:5:ResNet-32:w/o two-level|27.79|0.14
okddip:6:CIFAR-10:OKDDip+KD|5.36|0.06
okddip:6:CIFAR-100:KD|26.51|0.14
okddip:6:CIFAR-10:Teacher|5.27|0.23
okddip:7:ResNet-32:DML|6.41|0.11
okddip:7:WRN-20-8:OKDDip|4.67|0.03
okddip:8:DenseNet-40-12:OKDDip|23.74|0.12
okddip:8:VGG-16:DML|21.62|0.16
okddip:8:WRN-20-8:DML|19.29|0.06
okddip:9:ResNet-32:CL-ILR|5.9|0.05
okddip:9:ResNet-110:ONE|4.83|0.08
okddip:9:WRN-20-8:Ind|5.21|0.01
okddip:10:KD:CIFAR-100|26.35|0.19
okddip:10:OKDDip (network):CIFAR-10|4.94|0.05
okddip:10:OKDDip+KD (branch):CIFAR-100|22.92|0.10
okddip:10:OKDDip+KD (network):CIFAR-10|4.85|0.03
okddip:10:Teacher:CIFAR-100|20.72|0.13
dckd:1:Top-1:Teacher|73.31|
dckd:1:Top-1:CC|71.45|0.08
dckd:1:Top-1:DCKD Net1|72.27|0.06
dckd:1:Top-5:Student|89.07|
dckd:1:Top-5:DCKD Net1|90.93|0.03
dckd:1:Top-5:DCKD Net3|90.95|0.03
dckd:2:Teacher:WRN-40-2/WRN-40-1|76.35|
dckd:2:Student:ResNet32x4/ResNet8x4|72.83|
dckd:2:KD:ResNet56/ResNet20|71.90|0.43
dckd:2:FitNet:ResNet110/ResNet32|70.73|0.12
dckd:2:FT:ResNet110/ResNet32|72.36|0.47
dckd:2:CC:WRN-40-2/WRN-40-1|72.05|0.41
dckd:2:OFD:VGG13/VGG8|71.13|0.10
dckd:2:CRD+KD:ResNet110/ResNet20|72.66|0.09
dckd:2:ReviewKD:VGG13/VGG8|72.01|0.01
dckd:2:DCKD Net2:WRN-40-2/WRN-40-1|75.65|0.02
dckd:2:DCKD Net3:ResNet32x4/ResNet8x4|75.60|0.19
dckd:3:Teacher:ResNet50/VGG8|79.68|
dckd:3:Student:ResNet32x4/ShuffleNetV2|73.89|
dckd:3:FitNet:VGG13/MobileNetV2|63.41|0.92
dckd:3:AT:WRN-40-2/ShuffleNetV1|75.00|0.07
dckd:3:RKD:ResNet50/MobileNetV2|65.88|0.35
dckd:3:OFD:VGG13/MobileNetV2|63.43|0.74
dckd:3:CRD:ResNet50/VGG8|74.10|0.02
dckd:3:ReviewKD:ResNet32x4/ShuffleNetV1|75.85|0.18
dckd:3:DCKD Net1:ResNet32x4/ShuffleNetV2|77.60|0.03
dckd:3:DCKD Net3:WRN-40-2/ShuffleNetV1|77.25|0.16
dckd:4:CIFAR-10:CRD|90.35|0.24
dckd:4:CIFAR-10:Teacher|92.10|
dckd:4:Fashion-MNIST:KD|94.30|0.05
dckd:4:Fashion-MNIST:DCKD Net2|94.47|0.08
dckd:5:ONE:Net3|73.76|0.25
dckd:5:OKDDip:Net1|74.87|0.05
dckd:5:KDCL:Net2|73.22|0.06
dckd:6:DCKD w/o Rev. KL:Net2|74.72|0.16
dckd:6:DCKD w/o Max Col.:Net1|75.05|0.03
dckd:6:DCKD w/o Rev. KL, Max Col.:Net3|74.69|0.10
dckd:7:N=2:Net2|74.85|0.05
dckd:7:N=4:Net4|74.72|0.00
dckd:7:N=5:Net5|74.64|0.10
dckd:8:DCKD Net2:MobileNetV2|70.78|
dckd:8:Student:ShuffleNetV1|71.34|
dckd:8:eDCKD Net1:WRN-16-2|77.19|0.08
dckd:8:eDCKD Net3:MobileNetV2|71.50|0.28
dckd:8:Ensembled Student:ShuffleNetV2|77.26|0.22
dckd:8:Ensembled Student:VGG8|75.27|0.12
""".strip().splitlines()


def raw() -> list[dict]:
    """Every row of both files as text: the digits as printed."""
    rows = []
    for paper in papers.PAPERS:
        path = Path(papers.__file__).with_name(f"{paper}.csv")
        with path.open(newline="", encoding="utf-8") as file:
            rows += csv.DictReader(file)
    return rows


def one(which):
    frame = cells(which)
    assert len(frame) == 1, which
    return frame.iloc[0]


def fields(params: str) -> dict:
    return dict(pair.split("=") for pair in params.split(";")) if params else {}


@pytest.mark.parametrize("paper", LAYOUT)
def test_every_table_has_the_cells_of_its_layout(paper):
    assert Counter(cells(paper)["table"]) == LAYOUT[paper]
    assert len(cells()) == sum(sum(tables.values()) for tables in LAYOUT.values()) == 544


def test_full_tables_have_every_row_in_every_column():
    ragged = {("dckd", "7"), ("dckd", "fig2"), ("dckd", "fig3")}
    for (paper, table), part in cells().groupby(["paper", "table"]):
        if (paper, table) not in ragged:
            assert len(part) == part["row"].nunique() * part["column"].nunique(), (paper, table)
    sizes = {row: len(part) for row, part in cells("dckd:7").groupby("row")}
    assert sizes == {"N=2": 2, "N=3": 3, "N=4": 4, "N=5": 5}


@pytest.mark.parametrize("line", TYPED)
def test_cell_equals_the_print(line):
    which, value, std = line.split("|")
    at = which.split(":")
    hit = [r for r in raw() if [r["paper"], r["table"], r["row"], r["column"]] == at]
    assert [(r["published"], r["published_std"]) for r in hit] == [(value, std)]
    cell = one(which)
    assert cell["published"] == float(value)
    assert cell["published_std"] == pytest.approx(float(std or "nan"), abs=0, nan_ok=True)


def test_cells_are_unique_and_complete():
    frame = cells()
    key = ["paper", "table", "row", "column", "dataset", "statistic", "metric"]
    assert not frame.duplicated(key).any()
    assert not frame.duplicated(key[:4]).any()  # a path names one cell
    assert not frame[["row", "column"]].map(lambda label: ":" in label or not label).any().any()
    assert tuple(frame.columns) == papers.COLUMNS


def test_numbers_are_in_range_and_curves_have_none():
    curves = 0
    for r in raw():
        if r["table"].startswith("fig"):
            curves += 1
            assert r["published"] == r["published_std"] == "", r
            assert "no numbers" in r["note"] or "a picture" in r["note"], r
            continue
        assert re.fullmatch(r"\d{1,2}\.\d{1,2}", r["published"]), r
        assert re.fullmatch(r"|0\.\d\d", r["published_std"]), r
        low, high = {"top1_error": (3.5, 30), "top1": (60, 95), "top5": (89, 92)}[r["metric"]]
        assert low < float(r["published"]) < high, r
    assert curves == 40


def test_names_are_known():
    for r in raw():
        assert r["method"] in METHODS, r
        assert r["student"] in NETWORKS[r["paper"]], r
        assert r["teacher"] in NETWORKS[r["paper"]] | {""}, r
        assert r["statistic"] in STATISTICS, r
        assert r["dataset"] in {"cifar10", "cifar100", "imagenet", "fashion_mnist32"}, r
        assert r["networks"] and ("->" in r["networks"]) == bool(r["teacher"]), r
        if r["method"] in NEEDS_TEACHER:
            assert r["teacher"], r
        if r["method"] in {"baseline", "ind", "one", "cl_ilr", "okddip"}:
            assert not r["teacher"], r
        if not r["table"].startswith("fig"):
            metrics = {"top1_error"} if r["paper"] == "okddip" else {"top1", "top5"}
            assert r["metric"] in metrics, r
    used = {r["method"] for r in raw()}
    assert used == set(METHODS)


def test_params_are_method_fields():
    allowed = {
        "ind": {"m", "based"},
        "dml": {"m", "teacher_weight"},
        "cl_ilr": {"m"},
        "one": {"m"},
        "okddip": {"m", "based", "attention", "two_level"},
        "kdcl": {"m", "form", "with_teacher"},
        "okddip_kd": {"m", "based", "two_level"},
        "dckd": {"m", "collection", "reverse"},
        "edckd": {"m"},
    }
    for r in raw():
        found = fields(r["params"])
        assert set(found) <= allowed.get(r["method"], set()), r
        assert ("m" in found) == (r["method"] in allowed), r
        if r["table"] in {*"12346789", "10"} and r["paper"] == "okddip" and "m" in found:
            assert found["m"] == "4", r
        if r["statistic"].startswith("sorted student"):
            assert int(r["statistic"][-1]) <= int(found["m"]), r
            assert r["statistic"][-1] == r["row" if r["table"] in "238" else "column"][-1], r
    assert fields(one("okddip:5:resnet-32:w/o sa (mean)")["params"])["attention"] == "mean"
    assert fields(one("dckd:6:DCKD w/o Max Col.:Net1")["params"])["collection"] == "avg"
    both = fields(one("dckd:6:DCKD w/o Rev. KL, Max Col.:Net1")["params"])
    assert both == {"m": "3", "collection": "avg", "reverse": "False"}
    assert set(cells("okddip:fig3")["params"].str.extract(r"m=(\d)")[0]) == set("345678")


def test_same_printed_number_in_several_tables():
    for net, k in (("Net1", 1), ("Net2", 2), ("Net3", 3)):
        twins = [
            one(f"dckd:5:DCKD:{net}"),
            one(f"dckd:6:DCKD:{net}"),
            one(f"dckd:7:N=3:{net}"),
            one(f"dckd:2:DCKD Net{k}:ResNet110/ResNet32"),
        ]
        assert len({(c["published"], c["published_std"], c["statistic"]) for c in twins}) == 1
    pairs = cells("dckd:8:Ensembled Student")
    for _, cell in pairs.iterrows():  # table 8's columns point at the pairs of tables 2 and 3
        column = cell["networks"].replace(" -> ", "/")
        table = "2" if column in set(cells("dckd:2")["column"]) else "3"
        for row in ("DCKD Net1", "DCKD Net2", "DCKD Net3", "Student"):
            here = one(f"dckd:8:{row}:{cell['column']}")
            there = one(f"dckd:{table}:{row}:{column}")
            assert here["published"] == there["published"]
            assert (here["student"], here["method"]) == (there["student"], there["method"])
    for table, ds in (("1", "CIFAR-10"), ("2", "CIFAR-100")):
        assert (
            one(f"okddip:6:{ds}:Baseline")["published"]
            == one(f"okddip:{table}:ResNet-32:Baseline")["published"]
        )


def test_sorted_nets_are_sorted_by_top1():
    frame = cells("dckd")
    frame = frame[frame["statistic"].str.startswith("sorted") & (frame["metric"] == "top1")]
    frame = frame[frame["published"].notna()]
    keys = ["table", "dataset", "networks", "method", "params"]
    groups = frame.sort_values("statistic").groupby(keys)["published"]
    assert groups.apply(lambda top1: top1.is_monotonic_decreasing).all()
    assert groups.size().sum() == len(frame) == 3 + 21 + 18 + 6 + 15 + 12 + 14 + 42
    top5 = cells("dckd:1:Top-5").tail(3)["published"]
    assert not top5.is_monotonic_decreasing  # rides along, unsorted


@pytest.mark.parametrize(
    "which, words",
    [
        ("okddip:8:ResNet-32:DML", "table 2"),
        ("okddip:8:WRN-20-8:OKDDip", "table 2"),
        ("okddip:10:OKDDip (branch):CIFAR-10", "table 9"),
        ("okddip:9:ResNet-32:OKDDip", "table 10"),
        ("okddip:7:ResNet-32:DML", "6.18 in table 1"),
        ("okddip:9:DenseNet-40-12:CL-ILR", "7.02 in table 1"),
        ("okddip:9:WRN-20-8:CL-ILR", "5.12 in table 1"),
    ],
)
def test_contradicted_cells_carry_a_note(which, words):
    note = one(which)["note"]
    assert "CONTRADICTION" in note and words in note


@pytest.mark.parametrize(
    "which, words",
    [
        ("okddip:6:CIFAR-10:Teacher", "5.46 (0.02)"),
        ("okddip:8:ResNet-32:Baseline", "28.76"),
        ("okddip:9:VGG-16:Ind", "6.03 in table 1"),
        ("okddip:10:KD:CIFAR-10", "6.08 in table 6"),
        ("okddip:10:Teacher:CIFAR-10", "4.39 (0.06)"),
        ("okddip:10:Teacher:CIFAR-100", "20.57 (0.09)"),
    ],
)
def test_doubtful_cells_carry_a_note(which, words):
    note = one(which)["note"]
    assert "DOUBTFUL" in note and words in note


def test_an_ensemble_worse_than_its_students_is_noted():
    seen = 0
    for table, source in (("4", "2"), ("7", "1"), ("8", "2"), ("9", "1")):
        for _, cell in cells(f"okddip:{table}").iterrows():
            if cell["method"] in {"baseline", "okddip"}:
                continue
            single = one(f"okddip:{source}:{cell['row']}:{cell['column']}")
            worse = cell["published"] > single["published"]
            assert worse == ("worse than the mean of its students" in cell["note"]), cell["note"]
            seen += worse
    assert seen == 7


def test_choices_of_the_kit_are_marked():
    for part in ("okddip:3", "dckd:4", "dckd:7", "dckd:5:KDCL", "dckd:5:ONE"):
        assert cells(part)["note"].str.contains("(choice)", regex=False).all(), part
    for part in ("okddip:7", "okddip:8"):
        ours = cells(part)
        notes = ours[ours["method"] == "baseline"]["note"]
        assert notes.str.contains("4 (choice)", regex=False).all()


def test_selection_narrows_and_ignores_case():
    assert len(cells("okddip")) == sum(LAYOUT["okddip"].values())
    assert len(cells("okddip:2")) == 35
    assert len(cells("OKDDIP:2:resnet-32")) == 7
    assert one("okddip : 2 : RESNET-32 : dml")["published"] == 26.47
    assert len(cells("dckd:2")) == 105  # "2" is neither table 20 nor fig2
    frame = cells("okddip:2:ResNet-32:DML")
    frame.loc[0, "published"] = 0.0  # the caller's own copy
    assert one("okddip:2:ResNet-32:DML")["published"] == 26.47
    whole = cells()
    whole.loc[:, "published"] = 0.0
    assert one("okddip:2:ResNet-32:DML")["published"] == 26.47


@pytest.mark.parametrize(
    "which, seen, allowed",
    [
        ("okdip", "'okdip'", "okddip | dckd"),
        ("", "''", "okddip | dckd"),
        ("okddip:11", "'11'", "9 | 10 | fig2"),
        ("okddip:", "''", "1 | 2 | 3"),
        ("dckd:2:DML", "'DML'", "KD | FitNet | AT"),
        ("okddip:2:ResNet", "'ResNet'", "DenseNet-40-12 | ResNet-32"),
        ("okddip:2:ResNet-32:OKDDip", "'OKDDip'", "OKDDip (network) | OKDDip (branch)"),
        ("okddip:2:VGG-16:DML:x", "'okddip:2:VGG-16:DML:x' with 5 parts", "paper:table:row:column"),
        (2, "2", "paper:table:row:column"),
    ],
)
def test_an_unknown_name_is_refused(which, seen, allowed):
    with pytest.raises(ValueError) as error:
        cells(which)
    message = str(error.value)
    assert f"seen {seen}" in message and allowed in message and "\n" not in message


def test_what_the_recipes_settle_has_a_value_a_reason_and_a_mark():
    path = Path(papers.__file__).with_name("choices.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {r["paper"] for r in rows} == set(papers.PAPERS)
    assert all(r[k] for r in rows for k in ("what", "value", "why"))
    assert [r["what"] for r in rows if "(choice)" not in r["why"]] == ["result"]
    told = {(r["paper"], r["what"]): r["value"] for r in rows}
    assert "5e-4" in told["okddip", "weight decay"] and "1e-4" in told["okddip", "weight decay"]
    assert told["dckd", "learning rate"].startswith(".05, .01 for MobileNet")
