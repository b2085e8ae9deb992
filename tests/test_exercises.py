"""Checks of exercises: each typical wrong answer has a sentence of its own, no answer raises."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import kdkit as kd
from kdkit import losses, metrics
from kdkit.study import teach

generator = torch.Generator().manual_seed(0)


def drawn(*shape):
    return torch.randn(*shape, generator=generator)


z_s, z_t, y, peers, f, h = (
    drawn(5, 4),
    drawn(5, 4),
    torch.tensor([0, 1, 3, 2, 0]),
    drawn(3, 5, 4),
    drawn(3, 2, 4, 4),
    drawn(4, 5, 6),
)
W_q, W_k = drawn(2, 6), drawn(2, 6)
p = F.softmax(drawn(3, 4), -1).numpy()
BIG = torch.tensor([[1000.0, 0.0, 0.0], [0.0, 1000.0, 0.0]]), torch.tensor([0, 0])
CE, KL, OTHERS = [(z_s, y), BIG], [(z_s, z_t, 1.0), (z_s, z_t, 4.0)], [(peers,), (peers[:2],)]
GAIN = [(71.9, 69.28, "top1"), (25.63, 28.76, "top1_error")]


def picked(log_p, y):
    return -log_p.gather(-1, y[:, None])[:, 0]


def flat_kl(z_s, z_t, T, reduction="batchmean", axis=-1):
    log_q, p = F.log_softmax(z_s / T, axis), F.softmax(z_t / T, axis)
    return T**2 * F.kl_div(log_q, p, reduction=reduction)


def attend(h, W_q, W_k, axis=-1):
    return torch.einsum("abd,cbd->bac", h @ W_q.T, h @ W_k.T).softmax(axis)


def without(z, of):
    return [of(torch.cat([z[:k], z[k + 1 :]])) for k in range(len(z))]


def squares(f):
    return f.square().mean(1).flatten(1)


def distances(h, square=False):
    d = (h[:, None] - h[None]).norm(dim=-1)
    d = d**2 if square else d
    return d / d[d > 0].mean()


def plogp(p):
    return -p * np.log(np.where(p > 0, p, 1))


def gain(published, alone, metric):
    return alone - published if metric.endswith("error") else published - alone


def my_index(z, y):
    z = z - z.max()
    return z[7, y]


WRONG = {  # name: the learner's function, the library's, cases, what must be said
    "mean missing": (
        lambda z, y: picked(F.log_softmax(z, -1), y),
        losses.ce,
        CE,
        "The mean over axis 0 is missing.",
    ),
    "sum for mean": (
        lambda z, y: picked(F.log_softmax(z, -1), y).sum(),
        losses.ce,
        CE,
        "5 times too large; 5 is the size of z's axis 0. Is the mean over it missing?",
    ),
    "sign": (lambda z, y: -losses.ce(z, y), losses.ce, CE, "The sign is turned round."),
    "sign and sum": (
        lambda z, y: -5 * losses.ce(z, y),
        losses.ce,
        CE[:1],
        "The sign is turned round, and it is 5 times too large",
    ),
    "softmax over images": (
        lambda z, y: picked(F.log_softmax(z, 0), y).mean(),
        losses.ce,
        CE,
        "Your softmax is over axis 0; it should be over axis 1.",
    ),
    "softmax of all": (
        lambda z, y: picked(F.log_softmax(z.flatten(), 0).view_as(z), y).mean(),
        losses.ce,
        CE,
        "Your softmax is over all values at once; it should be over axis 1.",
    ),
    "base 2": (
        lambda z, y: losses.ce(z, y) / np.log(2),
        losses.ce,
        CE,
        "The logarithm is to base 2; the natural one is meant.",
    ),
    "overflow": (
        lambda z, y: picked((z.exp() / z.exp().sum(-1, keepdim=True)).log(), y).mean(),
        losses.ce,
        CE,
        "case 2 of 2, z (2, 3), y (2,): got nan, expected 500.\nnan comes from 0/0, inf - inf",
    ),
    "infinite": (
        lambda z, y: picked(F.softmax(z, -1).log(), y).mean(),
        losses.ce,
        CE,
        "inf comes from",
    ),
    "error": (
        my_index,
        losses.ce,
        CE,
        "IndexError: index 7 is out of bounds for dimension 0 with size 5, in your line "
        "`return z[7, y]`\nHint: think",
    ),
    "one argument": (lambda z: z, losses.ce, CE, "takes 1 positional argument but 2 were given"),
    "a word": (lambda z, y: "ten", losses.ce, CE, "got 'ten', expected"),
    "two for one": (lambda z, y: (z, y), losses.ce, CE, "got 2 value(s) (5, 4), (5,), expected 1"),
    "no T squared": (
        lambda z_s, z_t, T: flat_kl(z_s, z_t, T) / T**2,
        losses.kl_T,
        KL,
        "16 times too small; 16 is T**2. Multiply by T**2.",
    ),
    "T for T squared": (
        lambda z_s, z_t, T: flat_kl(z_s, z_t, T) / T,
        losses.kl_T,
        KL,
        "4 times too small; 4 is T.",
    ),
    "T twice": (
        lambda z_s, z_t, T: flat_kl(z_s, z_t, T) * T**2,
        losses.kl_T,
        KL,
        "16 times too large; 16 is T**2. Divide by T**2.",
    ),
    "no T": (
        lambda z_s, z_t, T: flat_kl(z_s, z_t, 1),
        losses.kl_T,
        KL,
        "It is the answer for T = 1: T is not used.",
    ),
    "T squared alone": (
        lambda z_s, z_t, T: flat_kl(z_s, z_t, 1) * T**2,
        losses.kl_T,
        KL,
        "It is T**2 times the answer for T = 1: T acts as a factor alone.",
    ),
    "order": (
        lambda z_s, z_t, T: flat_kl(z_t, z_s, T),
        losses.kl_T,
        KL,
        "The order is turned round: it is right for z_s and z_t exchanged.",
    ),
    "mean over classes": (
        lambda z_s, z_t, T: flat_kl(z_s, z_t, T) / 4,
        losses.kl_T,
        KL[:1],
        "4 times too small; 4 is the size of z_s's axis 1. Do you divide by it without need?",
    ),
    "mean over all": (
        lambda z_s, z_t, T: flat_kl(z_s, z_t, T) * 20,
        losses.kl_T,
        KL[:1],
        "20 is 5 * 4, the sizes of z_s's axes 0 and 1.",
    ),
    "no reduction": (
        lambda z_s, z_t, T: flat_kl(z_s, z_t, T, "none"),
        losses.kl_T,
        KL,
        "The mean over axis 0 and the sum over axis 1 are missing.",
    ),
    "KL over images": (
        lambda z_s, z_t, T: flat_kl(z_s, z_t, T, axis=0),
        losses.kl_T,
        KL,
        "Your softmax is over axis 0; it should be over axis 1.",
    ),
    "not normalised": (
        squares,
        losses.attention_map,
        [(f,)],
        "The values along axis 1 should have length 1; yours do not. Hint: think",
    ),
    "normalised over images": (
        lambda f: F.normalize(squares(f), dim=0),
        losses.attention_map,
        [(f,)],
        "Your normalisation is over axis 0; it should be over axis 1.",
    ),
    "normalised at once": (
        lambda f: squares(f) / squares(f).norm(),
        losses.attention_map,
        [(f,)],
        "Your normalisation is over all values at once",
    ),
    "not flat": (
        lambda f: losses.attention_map(f).view(3, 4, 4),
        losses.attention_map,
        [(f,)],
        "The values are right, their shape is not: reshape or flatten them.",
    ),
    "keepdim": (
        lambda f: losses.attention_map(f)[..., None],
        losses.attention_map,
        [(f,)],
        "an axis of size 1 is too many or too few; leave keepdim=True out.",
    ),
    "transposed, other shape": (
        lambda f: losses.attention_map(f).T,
        losses.attention_map,
        [(f,)],
        "It is transposed: exchange axes 0 and 1.",
    ),
    "mean of all": (
        lambda z: z.mean(0),
        losses.others_mean,
        OTHERS,
        "The mean is over all 3; only the others are meant: leave oneself out.",
    ),
    "maximum of all": (
        lambda z: z.amax(0).expand_as(z),
        losses.others_max,
        OTHERS,
        "The maximum is over all 3; only the others are meant: leave oneself out.",
    ),
    "maximum of everything": (
        lambda z: z.max().expand_as(z),
        losses.others_max,
        OTHERS,
        "Your maximum is over all values at once; it should be over axis 1.",
    ),
    "maximum with positions": (
        lambda z: z.max(0),
        losses.others_max,
        OTHERS,
        "got values and their positions (take .values), expected shape (3, 5, 4)",
    ),
    "mean of the other axis": (
        lambda z, y: losses.ce(z, y) * len(z) / z.shape[1],
        losses.ce,
        CE,
        "It is 5/4 of the right answer, the sizes of z's axes 0 and 1: one for the other?",
    ),
    "factor 2": (lambda z: z.sum() * 2, lambda z: z.sum(), [(z_s,)], "It is 2 times too large."),
    "sum of the others": (
        lambda z: z.sum(0) - z,
        losses.others_mean,
        OTHERS[:1],
        "2 times too large; 2 is one less than the size of z's axis 0. Divide by it.",
    ),
    "divided by m": (
        lambda z: (z.sum(0) - z) / len(z),
        losses.others_mean,
        OTHERS,
        "It is 2/3 of the right answer; 3 is the size of z's axis 0.",
    ),
    "attention over the askers": (
        lambda h, W_q, W_k: attend(h, W_q, W_k, 1),
        attend,
        [(h, W_q, W_k)],
        "Your softmax is over axis 1; it should be over axis 2.",
    ),
    "scores": (
        lambda h, W_q, W_k: torch.einsum("abd,cbd->bac", h @ W_q.T, h @ W_k.T),
        attend,
        [(h, W_q, W_k)],
        "The values along axis 2 should sum to 1; yours do not.",
    ),
    "attention transposed": (
        lambda h, W_q, W_k: attend(h, W_q, W_k).mT,
        attend,
        [(h, W_q, W_k)],
        "It is transposed: exchange axes 1 and 2.",
    ),
    "query for key": (
        lambda h, W_q, W_k: attend(h, W_k, W_q),
        attend,
        [(h, W_q, W_k)],
        "it is right for W_q and W_k exchanged.",
    ),
    "numpy along images": (
        lambda p: plogp(p).sum(0),
        metrics.entropy,
        [(p,)],
        "It goes along the wrong axis: it is right with axes 0 and 1 exchanged.",
    ),
    "numpy 0 log 0": (
        lambda p: -(p * np.log(p)).sum(-1),
        metrics.entropy,
        [(p,), (np.eye(4),)],
        "case 2 of 2, p (4, 4): got nan at [0], expected 0; 4 of 4 values differ.",
    ),
    "numpy all at once": (
        lambda p: plogp(p).sum(),
        metrics.entropy,
        [(p,)],
        "You took the sum over axis 0 as well",
    ),
    "distances not divided": (
        lambda h: (h[:, None] - h[None]).norm(dim=-1),
        distances,
        [(drawn(6, 3),)],
        "times the right one. Hint: think",
    ),
    "distances squared": (
        lambda h: distances(h, square=True),
        distances,
        [(drawn(6, 3),)],
        "It goes as the square of the right answer.",
    ),
    "oneself is counted": (
        lambda h: distances(h) * 6 / 5,
        distances,
        [(drawn(6, 3),)],
        "It is 6/5 of the right answer; 6 is the size of h's axis 0.",
    ),
    "squared": (lambda z: losses.others_mean(z) ** 2, losses.others_mean, OTHERS, "the square of"),
    "shifted": (
        lambda z: losses.others_mean(z) - 0.5,
        losses.others_mean,
        OTHERS,
        "Every value is 0.5 too small.",
    ),
    "numbers": (
        lambda published, alone, metric: published - alone,
        gain,
        GAIN,
        "case 2 of 2, published 25.63, alone 28.76, metric 'top1_error': got -3.13, expected "
        "3.13.\nThe sign is turned round.",
    ),
    "second part": (
        lambda z: (z, -z),
        lambda z: [z, z.mean(0)],
        [(z_s,)],
        "part 2: got shape (5, 4):",
    ),
    "unknown": (
        lambda z, y: losses.ce(z, y) + y.sum() / 7,
        losses.ce,
        CE,
        "expected 2.141.\nHint: think",
    ),
}


@pytest.mark.parametrize("yours, reference, cases, says", WRONG.values(), ids=WRONG)
@pytest.mark.filterwarnings("ignore:.*reduction:UserWarning", "ignore::RuntimeWarning")
def test_a_wrong_answer_has_its_own_sentence(yours, reference, cases, says, capsys):
    assert kd.check(yours, reference, cases, "think") is None
    out = capsys.readouterr().out
    assert says in out and out.startswith("case ") and out.count("\n") <= 2


RIGHT = {
    "tensor": (lambda z: (z.sum(0) - z) / (len(z) - 1), losses.others_mean),
    "list of tensors": (lambda z: without(z, lambda r: r.mean(0)), losses.others_mean),
    "tuple": (lambda z: tuple(without(z, lambda r: r.max(0).values)), losses.others_max),
    "array": (lambda z: losses.others_mean(z).numpy(), losses.others_mean),
    "array backwards": (lambda z: z.numpy()[::-1], lambda z: z.flip(0)),
    "nested lists": (lambda z: losses.others_mean(z).tolist(), losses.others_mean),
    "with gradient": (lambda z: losses.others_mean(z.requires_grad_()), losses.others_mean),
    "double": (lambda z: losses.others_mean(z.double()), losses.others_mean),
    "half": (lambda z: losses.others_mean(z.bfloat16()), losses.others_mean),
    "whole numbers": (lambda z: [3, 5, 4], lambda z: torch.tensor([3.0, 5.0, 4.0])),
    "parts": (lambda z: [z.mean(0), len(z)], lambda z: (z.mean(0), torch.tensor(len(z)))),
    "in place": (lambda z: z.neg_(), lambda z: -z),
    "random": (lambda z: z + torch.rand(3), lambda z: z + torch.rand(3)),
}


@pytest.mark.parametrize("yours, reference", RIGHT.values(), ids=RIGHT)
def test_a_right_answer_may_come_in_any_form(yours, reference, capsys):
    z = drawn(3, 2, 3)
    before = z.clone()
    kd.check(yours, reference, [(z,)])
    assert capsys.readouterr().out == "right: the same as the library, 1 of 1 cases\n"
    assert z.equal(before) and not z.requires_grad


def test_a_right_answer_may_come_from_a_network_with_gradients(capsys):
    z = (drawn(3, 2, 3).requires_grad_() * 2).square()  # no leaf: deepcopy refuses it
    kd.check(lambda z: z.sum(), lambda z: z.sum().item(), [(z,)])
    kd.check(lambda zs: [v.add_(1) for v in zs], lambda zs: [v + 1 for v in zs], [([z.detach()],)])
    assert capsys.readouterr().out.count("right:") == 2


def unedited(z, y): ...


def to_be_written(z, y):
    raise NotImplementedError


def forgets_to_return(z, y):
    losses.ce(z, y)


@pytest.mark.parametrize(
    "yours", [None, ..., unedited, to_be_written, forgets_to_return, lambda z, y: ...]
)
def test_what_is_not_written_is_not_done_yet(yours, capsys):
    assert kd.check(yours, losses.ce, CE, "think") is None
    out = capsys.readouterr().out
    assert out.startswith("not done yet: ") and out.count("\n") == 1 and "think" not in out


def test_what_is_no_function(capsys):
    kd.check(3.0, losses.ce, CE)
    kd.check("my_ce", losses.ce, CE)
    assert capsys.readouterr().out.splitlines() == [
        "a function is expected; this is 3.",
        "a function is expected; this is 'my_ce'.",
    ]


def test_an_accident_of_the_first_case_is_not_the_mistake(capsys):
    """Factor 4 is T, and in the first case the number of classes as well."""
    cases = [(drawn(5, 4), 4.0), (drawn(5, 3), 2.0)]
    kd.check(lambda z, T: z.sum(), lambda z, T: z.sum() * T, cases)
    assert "4 is T." in capsys.readouterr().out
    kd.check(lambda z, T: z.sum(), lambda z, T: z.sum() * z.shape[1], cases)
    assert "4 is the size of z's axis 1" in capsys.readouterr().out
    kd.check(lambda z, y: losses.ce(z, y) - z.amax(-1).mean(), losses.ce, [BIG, (z_s, y)], "think")
    assert capsys.readouterr().out.endswith("got -500, expected 500.\nHint: think\n")


def test_a_mistake_is_the_same_whatever_the_number_of_axes(capsys):
    cases = [(drawn(2, 3, 4).softmax(-1).numpy(),), (drawn(5, 3).softmax(-1).numpy(),)]
    kd.check(lambda p: plogp(p).mean(-1), metrics.entropy, cases)
    kd.check(plogp, metrics.entropy, cases)
    kd.check(lambda p: plogp(p).sum(0), metrics.entropy, cases)
    kd.check(lambda p: plogp(p).sum(-1) / np.log(2), metrics.entropy, cases)
    said = capsys.readouterr().out.splitlines()[1::2]
    assert said == [
        "It is 4 times too small; 4 is the size of p's axis 2. Do you divide by it without need?",
        "The sum over axis 2 is missing.",
        "It goes along the wrong axis: it is right with axes 0 and 2 exchanged.",
        "The logarithm is to base 2; the natural one is meant.",
    ]


@pytest.mark.parametrize("cases", [[], [drawn(3)], drawn(2, 3)])
def test_cases_are_tuples_of_arguments(cases):
    with pytest.raises(ValueError, match="a list of tuples of arguments, at least one"):
        kd.check(len, len, cases)


def test_no_answer_raises(capsys):
    """Any shape, order of axes and kind of answer against each of several references."""
    z = drawn(3, 4, 4)
    z[0, 0] = 0.0
    answers = [z, z.mT, z.sum(0), z.sum(), z[:0], z[0, 0], z * torch.nan, z / 0, z.long(), z > 0]
    answers += [z.to(torch.complex64), z.to_sparse(), z.numpy().astype(object), z[None], {}, [[]]]
    answers += [[z, None], [z, z[0]], 10**30, float("-inf"), iter([1]), {1, 2}, "", b"", z.shape]
    answers += [torch.zeros(()), np.float32(2), np.array("x"), np.arange(4)[::-1], len, torch]
    references = [lambda z: z, lambda z: z.mean(0), lambda z: z.sum(), lambda z: (z, z[0])]
    references += [lambda z: z.softmax(-1), lambda z: z * 0, lambda z: z.log(), lambda z: z[:0]]
    references += [
        lambda z: z.numpy().max(-1),
        lambda z: [1, 2.0],
        lambda z: z / z.amax(1, keepdim=True),
    ]
    for answer, reference in itertools.product(answers, references):
        assert kd.check(lambda z, answer=answer: answer, reference, [(z,), (z[:, :2, :2],)]) is None
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= len(answers) * len(references) and max(map(len, lines)) < 300


@pytest.fixture(scope="module")
def lab(apart):
    return teach.lab("smoke", seeds=1, n_train=100, epochs=1)


@pytest.fixture(scope="module")
def dckd(lab):
    return lab.get(method="dckd", detach_collection=True)


def test_check_run_is_right(dckd, lab, capsys):
    kd.check_run(dckd, method="dckd", detach_collection=True)
    out = capsys.readouterr().out
    assert out == (
        f"right: DCKD (detach_collection=True, epochs=1, n_train=100), "
        f"{dckd.result['top1_deployed']:.2f} % of the test images (run {dckd.id})\n"
    )
    kd.check_run([dckd], method="dckd", detach_collection=1)
    kd.check_run(dckd, detach_collection=True, T=dckd.method.T, lr=dckd.run.lr)  # the defaults
    assert capsys.readouterr().out.count("right: ") == 2


WRONG_RUNS = {
    "not done": (lambda d, lab: None, {}, "not done yet: train the run with lab.get"),
    "ellipsis": (lambda d, lab: ..., {}, "not done yet"),
    "a run": (lambda d, lab: lab.run(method="dckd"), {}, "a finished run is expected"),
    "a number": (lambda d, lab: 83.1, {}, "as lab.get gives it; this is 83.1."),
    "an empty list": (lambda d, lab: [], {}, "this is list of 0"),
    "method": (lambda d, lab: d, {"method": "kd"}, "method='kd' is asked for, and this is 'dckd'"),
    "field": (
        lambda d, lab: d,
        {"detach_collection": False},
        "this run has detach_collection=True",
    ),
    "of the run": (lambda d, lab: d, {"detach_collection": True, "epochs": 2}, "epochs=2 is asked"),
    "seed": (lambda d, lab: d, {"detach_collection": True, "seed": 1}, "seed=1 is asked for, and"),
    "too much": (lambda d, lab: d, {"method": "dckd"}, "detach_collection=True should be left at"),
    "a bad check": (lambda d, lab: d, {"detached": True}, "unknown field of dckd 'detached'"),
}


@pytest.mark.parametrize("answer, fields, says", WRONG_RUNS.values(), ids=WRONG_RUNS)
def test_check_run_says_what_differs(answer, fields, says, dckd, lab, capsys):
    assert kd.check_run(answer(dckd, lab), **fields) is None
    out = capsys.readouterr().out
    assert says in out and out.count("\n") == 1 and "right" not in out


VALUES = [  # the answer, the right one, its unit, what is said
    (3.2, 3.2, "%", "right: 3.2 %"),
    (torch.tensor([3.21]), 3.2, "", "right: 3.21"),
    (np.float32(0), 0, "", "right: 0"),
    (None, 3.2, "", "not done yet: "),
    (..., 3.2, "", "not done yet: "),
    (3.3, 3.2, "%", "3.3 % is too large."),
    (3.1, 3.2, "%", "3.1 % is too small."),
    (-3.2, 3.2, "points", "-3.2 points has the wrong sign: which of the two is subtracted?"),
    (-9.0, 3.2, "points", "-9 points has the wrong sign."),
    (0.032, 3.2, "points", "0.032 points is a share of 1, and points are asked for"),
    (0.832, 83.2, "%", "0.832 % is a share of 1, and percent is asked for: multiply by 100."),
    (83.2, 0.832, "", "83.2 is percent, and a share of 1 is asked for: divide by 100."),
    (8320, 83.2, "%", "8320 % is 100 times too large: divide by 100."),
    (0.2, 20, "ms", "0.2 ms is 100 times too small: multiply by 100."),
    (16.8, 83.2, "%", "16.8 % is what is left to 100 %: is it an error, or an accuracy?"),
    (float("nan"), 3.2, "", "nan is no number"),
    (float("inf"), 3.2, "", "inf is no number"),
    (True, 1, "", "one number is expected; this is True."),
    ("3.2", 3.2, "", "one number is expected; this is '3.2'."),
    ([3.2, 3.3], 3.2, "", "one number is expected; this is list of 2."),
    (len, 3.2, "", "one number is expected; this is a builtin"),
]


@pytest.mark.parametrize("answer, wanted, unit, says", VALUES)
def test_check_value_gives_a_direction_and_not_the_number(answer, wanted, unit, says, capsys):
    assert kd.check_value(answer, wanted, unit) is None
    out = capsys.readouterr().out
    assert out.startswith(says) and out.count("\n") == 1


def test_check_value_takes_a_tolerance(capsys):
    kd.check_value(3.0, 3.2, "%", tolerance=0.25)
    kd.check_value(3.2001, 3.2, tolerance=0)
    assert capsys.readouterr().out.splitlines() == ["right: 3 %", "3.2001 is too large."]
