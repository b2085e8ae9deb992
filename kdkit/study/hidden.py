"""Characters that a student never saw: how many of their images it names all the same.

A run with the field `hide` trains its student without any image of some classes; its teacher knew
them. Hinton, Vinyals and Dean (2015, Section 3) hide the digit 3 so, and raise the bias of the
hidden class afterwards, because the student has never seen it win. Here that bias is fitted on
images without labels: so that a hidden class has a mean probability of 1/K on the images of the
validation typefaces, which hold every character equally often.
"""

import numpy as np
import torch

from .. import metrics
from . import sources
from .store import Record

STEPS = 60  # of the fit; the mean probability is right to six digits long before


def hidden_classes(record: Record) -> list[int]:
    """The numbers of the classes that a run hides. ValueError where it hides none."""
    if sources.SETS.get(record.run.data, sources.SETS["imagenet"]).family != "glyphs":
        raise ValueError(f"data={record.run.data!r}: hidden classes are looked at on glyphs alone")
    names = [name for name in record.run.hide.split(",") if name]
    if not names:
        raise ValueError(f"run {record.id} ({record.run.method}) hides no class")
    return [record.meta["class_names"].index(name) for name in names]


KEPT = 8  # students whose logits stay in memory: a picture of them is drawn more than once
_kept: dict[str, np.ndarray] = {}  # digest of weights -> logits


def unlabelled_logits(record: Record) -> np.ndarray:
    """The deployed student's logits (M, K) of the validation typefaces' images."""
    key = record.meta["weights_sha256"]
    if key not in _kept:
        while len(_kept) >= KEPT:
            del _kept[next(iter(_kept))]
        _kept[key] = _unlabelled_logits(record)
    return _kept[key]


def _unlabelled_logits(record: Record) -> np.ndarray:
    images, student = sources.load("glyphs_val").x_test, record.student()
    with torch.no_grad():
        return torch.cat([student(part) for part in images.split(500)]).numpy().astype(np.float64)


def fitted_bias(z: np.ndarray, hidden: list[int]) -> np.ndarray:
    """What to add to the logits of each hidden class (H,), so that the mean of its probability
    over the images becomes 1/K. z: logits (M, K)."""
    bias, z = np.zeros(len(hidden)), z.copy()
    for _ in range(STEPS):
        step = -np.log(metrics.softmax(z)[:, hidden].mean(0) * z.shape[1])
        z[:, hidden] += step
        bias += step
    return bias


def hidden_numbers(record: Record, bias: bool = True) -> dict[str, float]:
    """In percent: hidden_top1, of the test images of hidden classes how many are named, and
    seen_top1, of all other images; with `bias` also hidden_top1_bias and seen_top1_bias, with the
    fitted one, which takes longer."""
    hidden, labels = hidden_classes(record), record.labels
    z = record.logits()[0][record.result["deployed"] or 0]  # (N, K)
    logits = {"": z}
    if bias:
        logits["_bias"] = z.copy()
        logits["_bias"][:, hidden] += fitted_bias(unlabelled_logits(record), hidden)
    is_hidden, numbers = np.isin(labels, hidden), {}
    for end, answers in logits.items():
        right = answers.argmax(1) == labels
        numbers[f"hidden_top1{end}"] = 100 * float(right[is_hidden].mean())
        numbers[f"seen_top1{end}"] = 100 * float(right[~is_hidden].mean())
    return numbers
