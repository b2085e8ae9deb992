"""Who teaches whom, with what: a drawn diagram for each family of methods.

Fields are as by default, with three students where a method has a group.
"""

import numpy as np

from .drawing import Diagram, Panel
from .index import figure
from .shapes import MARGIN

PEERS = np.array([(0.25, 0.95, 0.35, 0.08), (0.1, 0.8, 0.2, 0.5), (0.55, 0.75, 0.1, 0.2)])
ATTENTION = np.array([(0.6, 0.25, 0.15), (0.15, 0.5, 0.35), (0.2, 0.1, 0.7)])  # oneself included


def diagram(name: str, notebook: str, alt: str, *panels: Panel, notes=(), tabs=(MARGIN,)) -> None:
    """Register a diagram; notes, tabs: as of `Diagram`."""
    figure(name, notebook=notebook, kind=Diagram(panels, alt, notes, tabs))


def for_each(text: str) -> str:
    """Lines written for students 1, 2 and 3: {i} is the number, {others} the others' answers."""
    others = {1: "z_2, z_3", 2: "z_1, z_3", 3: "z_1, z_2"}
    return "\n".join(text.format(i=i, others=others[i]) for i in others)


def bars(mixed=None) -> dict[str, tuple[float, ...]]:
    """Heights of three students' bars, and of each one's target. mixed: a function of the others'
    answers (2, 4), or weights (3, 3) of all."""
    found = {f"z_{i}": tuple(PEERS[i - 1]) for i in (1, 2, 3)}
    for i in (1, 2, 3):
        if isinstance(mixed, np.ndarray):
            found[f"q_{i}"] = tuple(mixed[i - 1] @ PEERS)
        elif mixed:
            found[f"q_{i}"] = tuple(mixed(np.delete(PEERS, i - 1, 0), 0))
    return found


# Arrows of student i, after its kind: its answers and its losses; then its target.
LEARNS = "_{i} -> z_{i} -> CE_{i}\nz_{i} -> KL_{i}\ny_{i} -> CE_{i}\n"
OWN_TARGET = "{others} => q_{i} *0.6\nq_{i} => KL_{i}"
SHARED_TARGET = "q => KL_{i} @hvh"

diagram(
    "diagram_hidden",
    "00",
    "A character that the student never saw: images without any é go into a frozen teacher, which "
    "knows é, and into a student; without a label, the student learns the teacher's softened "
    "answers, which give é a share wherever a character resembles it; afterwards the student is "
    "shown an é, its first, and names it; no gradient passes back to the teacher.",
    Panel(
        """
x     | teacher     | z_T   |    |
x     | teacher     | z_T   |    |
x     |             |       | KL | "<what resembles é/teaches some é" |
x     |             |       | KL | "<what resembles é/teaches some é" |
x     | student     | z     |    |
x     | student     | z     |    |
|
x_new | student_new | z_new |    | "<afterwards: its first é,/and it names it"
x_new | student_new | z_new |    | "<afterwards: its first é,/and it names it"
x_new | student_new | z_new |    | "<afterwards: its first é,/and it names it"
|
""",
        """
x -> teacher -> z_T =|> KL
x -> student -> z -> KL
x_new -> student_new -> z_new
""",
        "kd",
        {"KL": "kd"},
        "A student that gets no label, and no image of é",
        labels={
            "x": "images\nwithout é",
            "teacher": "teacher: knows é",
            "x_new": "an é",
            "student_new": "the same student",
            "z_new": "$z$",
        },
        bands=((7, 10, ""),),
        images={"x": "è", "x_new": "é"},
        bars={
            "z_T": (0.25, 0.45, 0.85, 0.55),
            "z": (0.3, 0.5, 0.9, 0.3),
            "z_new": (0.15, 0.3, 0.6, 0.85),
        },
        classes="ceèé",
        marked="é",
        pitch=0.3,
    ),
)

diagram(
    "diagram_baseline",
    "01",
    "Labels alone: images x go into a student, whose answers z, a bar for each class, meet the "
    "labels y in the loss CE; nobody else teaches.",
    Panel(
        "x | student | z | CE | y",
        "x -> student -> z -> CE\ny -> CE",
        "baseline",
        {"CE": "ce"},
        "Labels alone",
        labels={"x": "images\n$x$", "z": "answers\n$z$", "y": "labels\n$y$"},
        pitch=0.9,
    ),
)

diagram(
    "diagram_kd",
    "02",
    "Knowledge distillation: the same images x go into a large frozen teacher and a smaller "
    "student; the teacher's answers, softened by a temperature T, teach the student through the "
    "loss KL, and labels y teach it through CE; no gradient passes back to the teacher.",
    Panel(
        """
x | teacher | z_T |    | "<its whole answer,/softened by $T$"
x | teacher | z_T |    | "<its whole answer,/softened by $T$"
x |         |     | KL |
x |         |     | KL |
x | student | z   |    | CE | y
x | student | z   |    | CE | y
""",
        """
x -> teacher -> z_T =|> KL
x -> student -> z -> CE
z -> KL
y -> CE
""",
        "kd",
        {"CE": "ce", "KL": "kd"},
        "KD: a larger, frozen teacher's answers",
        bars={"z_T": (0.5, 0.85, 0.65, 0.3)},
        pitch=0.3,
    ),
)

diagram(
    "diagram_features",
    "03",
    "Feature hints: feature maps f from inside a frozen teacher teach a student's maps, which a "
    "regressor, trained along, takes to the same size; the loss is their mean squared difference, "
    "MSE, and labels y teach through CE; AT, FT, OFD and ReviewKD have other layers between the "
    "maps; no gradient passes back to the teacher.",
    Panel(
        """
x | teacher | f_T |           |     |
x |         |     |           | MSE |
x | student | f   | regressor |     |
x | student |     |           | z   | CE | y
""",
        """
x -> teacher -> f_T =|> MSE
x -> student -> f -> regressor -> MSE
student -> z -> CE
y -> CE
""",
        "fitnet",
        {"CE": "ce", "MSE": "hint"},
        "FitNet: a larger, frozen teacher's feature maps",
        "features",
        pitch=0.6,
    ),
    notes=(
        ("Likewise", "in place of the regressor", "on the teacher's side", "loss"),
        ("AT", "attention maps", "attention maps", "MSE"),
        ("FT", "a translator", "a paraphraser, learned before", "L1"),
        ("OFD", "1x1 convolutions, before the ReLU", "cut off below a margin", "partial L2"),
        ("ReviewKD", "maps fused from coarse to fine", "maps before the ReLU", "pooled MSE"),
    ),
    tabs=(MARGIN, 1.2, 3.85, 6.4),
)

diagram(
    "diagram_relations",
    "04",
    "Relations: a batch of images goes into a frozen teacher and a student; in RKD the distances "
    "and angles between the images' features h, as the teacher has them, teach the student's "
    "through the loss L1, and labels y teach through CE; in CRD the student's embedded feature is "
    "drawn to its own image's row of a bank of the teacher's features and away from rows of other "
    "classes, through the loss NCE; no gradient passes back to the teacher or the bank.",
    Panel(
        """
batch | teacher | r_T |   |    |
batch |         |     |   | L1 | "<distances,/angles"
batch |         |     |   | L1 | "<distances,/angles"
batch | student | r   |   |    |
batch | student |     | z |    | CE | y
""",
        """
batch -> teacher -> r_T =|> L1
batch -> student -> r -> L1
student -> z -> CE
y -> CE
""",
        "rkd",
        {"CE": "ce", "L1": "distance angle"},
        "RKD: how the images of a batch lie to one another",
        "relations",
        labels={"r_T": "$h_T$", "r": "$h$", "batch": "a batch"},
        pitch=0.55,
    ),
    Panel(
        """
x | teacher | h_T | embed_T | bank |     |
x |         |     |         |      | NCE | "<nearer to its own row,/away from the others"
x | student | h   | embed_S |      |     |
x | student |     |         | z    |     | CE | y
""",
        """
x -> teacher -> h_T -|> embed_T -> bank =|> NCE
x -> student -> h -> embed_S -> NCE
student -> z -> CE
y -> CE
""",
        "crd",
        {"CE": "ce", "NCE": "contrast"},
        "CRD: against a bank of the teacher's features of all images",
        "relations",
        labels={"embed_T": "$E_T$", "embed_S": "$E_S$"},
        pitch=0.56,
    ),
    notes=(
        ("CRD, too: the teacher's embedding against a bank of the student's",),
        ("CC: the difference of both embeddings, multiplied with that of the next image",),
    ),
)

diagram(
    "diagram_networks",
    "05",
    "Online networks, all of them learning: in DML three whole networks see the same images and "
    "each has a target of its own, the mean of the other two's answers, through KL, and labels "
    "through CE, and gradients pass through the targets to the others; in KDCL each network sees "
    "a view of its own, and all share one target, class by class the answer that is surest of the "
    "label, through which no gradient passes back.",
    Panel(
        for_each(
            "x |             |       | mean | q_{i} | KL_{i} |        |\n"
            "x | network_{i} | z_{i} | mean |       |        | CE_{i} | y_{i}"
        ),
        for_each("x -> network" + LEARNS + OWN_TARGET),
        "dml",
        {"CE": "ce", "KL": "mutual"},
        "DML: whole networks, a target for each",
        labels={"mean": "mean of\nthe others"},
        bars=bars(np.mean),
    ),
    Panel(
        '| | | q | | "<class by class the answer/surest of the label"\n'
        + for_each(
            "      |             |       | | KL_{i} |        |\n"
            "x_{i} | network_{i} | z_{i} | |        | CE_{i} | y_{i}"
        ),
        for_each("x_{i} -> network" + LEARNS + "z_{i} =|> q @hv\n" + SHARED_TARGET),
        "kdcl",
        {"CE": "ce", "KL": "target"},
        "KDCL: whole networks, one target for all",
        labels={f"x_{i}": f"view {i}" for i in (1, 2, 3)},
        bars=bars(),
    ),
)

diagram(
    "diagram_branches",
    "05",
    "Online branches on one shared trunk, all of them learning: in CL-ILR each of three peers has "
    "a target of its own, the mean of the other two's answers, and the gradient is divided by m, "
    "the number of peers, where it enters the trunk; in ONE all share one target, the peers' "
    "answers weighted by a gate that is fed by the trunk and learned along, and the target learns "
    "from the labels, too; gradients pass back along every arrow.",
    Panel(
        for_each(
            "x | trunk | split |          |       | mean | q_{i} | KL_{i} |        |\n"
            "x | trunk | split | peer_{i} | z_{i} | mean |       |        | CE_{i} | y_{i}"
        ),
        "x -> trunk -> split\n" + for_each("split -> peer" + LEARNS + OWN_TARGET),
        "cl_ilr",
        {"CE": "ce", "KL": "mutual"},
        "CL-ILR: branches on one trunk, a target for each",
        labels={"mean": "mean of\nthe others", "split": "gradient\n÷ $m$"},
        bars=bars(np.mean),
    ),
    Panel(
        "| | | gate | q | | CE_q | y_q\n"
        + for_each(
            "x | trunk |          |       |  | KL_{i} |        |\n"
            "x | trunk | peer_{i} | z_{i} |  |        | CE_{i} | y_{i}"
        ),
        "x -> trunk\ntrunk -> gate @vh\ngate -> q -> CE_q\ny_q -> CE_q\n"
        + for_each("trunk -> peer" + LEARNS + SHARED_TARGET)
        + "\nz_1 => q @hv *1.2\nz_2 => q @hv *0.5\nz_3 => q @hv *0.8",
        "one",
        {"CE": "ce", "CE_q": "ce_ensemble", "KL": "ensemble"},
        "ONE: branches on one trunk, one target for all, weighted by a gate",
        bars=bars(),
    ),
)

diagram(
    "diagram_okddip",
    "06",
    "OKDDip: three peers and a leader are branches on one shared trunk; on the first level each "
    "peer has a target of its own, a mixture of all peers' answers, its own included, whose "
    "weights an attention learns; on the second level the mean of the peers' answers teaches the "
    "leader, which teaches nobody; all learn from labels through CE as well, and gradients pass "
    "back along every arrow.",
    Panel(
        for_each(
            "x | trunk |          |       | attention | q_{i} | KL_{i} |        |\n"
            "x | trunk | peer_{i} | z_{i} | attention |       |        | CE_{i} | y_{i}"
        )
        + "\nx | trunk |        |     |  | q_L | KL_L |      |"
        + "\nx | trunk | leader | z_L |  |     |      | CE_L | y_L",
        "x -> trunk -> leader -> z_L -> CE_L\nz_L -> KL_L\ny_L -> CE_L\n"
        + for_each("trunk -> peer" + LEARNS + "q_{i} => KL_{i}\nattention -> q_{i} @none")
        + "\nz_1, z_2, z_3 => q_L *0.7 @hvh\nq_L => KL_L\n"
        + "\n".join(
            f"z_{j + 1} => q_{i + 1} *{0.3 + share:.2f}"
            for (i, j), share in np.ndenumerate(ATTENTION)
        ),
        "okddip",
        {"CE": "ce", "KL": "peers", "KL_L": "leader", "CE_L": "ce_leader"},
        "OKDDip: branches on one trunk, a target for each, and a leader",
        labels={"attention": "attention to all,\noneself included", "q_L": "mean of $z$"},
        bars=bars(ATTENTION) | {"q_L": tuple(PEERS.mean(0))},
        bands=((0, 5, "first level:\namong peers"), (6, 7, "second level:\nto the leader")),
    ),
)

diagram(
    "diagram_dckd",
    "07",
    "DCKD: the answers of a larger, frozen teacher teach three students through KL; each student "
    "also receives, class by class, the maximum of the other two's answers, through a reversed "
    "KL, and labels through CE; the gradient stops at the teacher alone; in the next generation, "
    "eDCKD, the mean of those three students' answers, now frozen, takes the teacher's place for "
    "three new students.",
    Panel(
        "x | teacher | | | z_T\n"
        + "x |\n"
        + for_each(
            "x |             |       | maximum | q_{i} | rKL_{i} | KL_{i} | |        |\n"
            "x | student_{i} | z_{i} | maximum |       |         |        | | CE_{i} | y_{i}"
        ),
        "x -> teacher -> z_T\n"
        + for_each(
            "x -> student" + LEARNS + "z_{i} -> rKL_{i}\n{others} => q_{i} *0.6\n"
            "q_{i} => rKL_{i}\nz_T =|> KL_{i} @bus"
        ),
        "dckd",
        {"CE": "ce", "KL": "teacher", "rKL": "collection"},
        "DCKD: a frozen teacher, and the maximum of the other students",
        labels={"maximum": "maximum of\nthe others"},
        bars=bars(np.max),
    ),
    Panel(
        """
x | ensemble | z_T |    | "<the rest as above"
x |          |     | KL |
x | students | z   |    | CE | y
""",
        "x -> ensemble -> z_T =|> KL\nx -> students -> z -> CE\nz -> KL\ny -> CE",
        "edckd",
        {"CE": "ce", "KL": "teacher"},
        "eDCKD, the next generation: DCKD's students are the teacher",
        labels={
            "ensemble": "DCKD's students",
            "students": "three new students",
            "z_T": "mean $z_T$",
        },
        pitch=0.68,
    ),
    notes=(("rKL: KL the other way round, with the student's answer first",),),
)
