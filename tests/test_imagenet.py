"""ImageNet's path end to end: a tree of JPEG files, the real loader, loop and store."""

import numpy as np
import pytest
import torch
from PIL import Image

from kdkit import train
from kdkit.models import Branches, Peers
from kdkit.study import sources
from kdkit.study.plans import build_students, plan, preset
from kdkit.study.runs import get


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Two classes, three training and two validation images each, of odd sizes."""
    root, draw = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for part, n in (("train", 3), ("val", 2)):
        for name in ("n01", "n02"):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                image = Image.fromarray(draw.integers(256, size=(9, 7, 3), dtype=np.uint8))
                image.resize((230 + 9 * i, 240 + 5 * i)).save(root / part / name / f"{i}.JPEG")
    return root


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """One store for all, so that the teacher is trained once."""
    return tmp_path_factory.mktemp("kept")


@pytest.mark.parametrize(
    "recipe, method, student, kind",
    [
        ("dckd_paper", "kd", "resnet18_imagenet", None),
        ("dckd_paper", "dckd", "resnet18_imagenet", Peers),
        ("okddip_paper", "okddip", "resnet34_imagenet", Branches),
    ],
)
def test_two_steps_and_an_evaluation(recipe, method, student, kind, tree, kept, monkeypatch):
    monkeypatch.setenv("KDKIT_DATA", str(tree))
    monkeypatch.setenv("KDKIT_RUNS", str(kept))
    run = preset(
        recipe,
        method=method,
        student=student,
        teacher="resnet34_imagenet",
        data="imagenet",
        epochs=1,
        batch=2,
        n_train=4,
        lr=1e-4,
        full_tests=0,
        threads=1,
        precision="fp32",
    )
    if plan(run).teacher:
        get(plan(run).teacher)  # so that no rehearsal for its sake is counted below
    steps, forward_terms = [], train.forward_terms

    def counted(state, *args):
        steps.append((state.data.shape, type(state.students)))
        return forward_terms(state, *args)

    monkeypatch.setattr(train, "forward_terms", counted)
    record = get(run)
    assert len(steps) == 2 and steps[0][0] == (3, 224, 224) and (not kind or steps[0][1] is kind)
    m = len(record.result["top1"])
    z = record.test_logits["students"]
    assert z.shape == (m, 4, 2) and np.isfinite(z).all() and m == {None: 1, Peers: 3}.get(kind, 4)
    assert all(np.isfinite(v) for v in record.history[0]["terms"].values())
    assert ("teacher" in record.test_logits) == (record.meta["teacher"] is not None)
    with torch.no_grad():
        data = sources.load("imagenet", n_train=4)
        x = next(iter(data.batches(False, 4, "none", None)))[0]
        again = record.model()(x).logits.reshape(m, 4, 2)
    np.testing.assert_allclose(again.numpy(), z, atol=2e-2)


def test_branches_share_all_but_the_last_two_stages(tree, monkeypatch):
    monkeypatch.setenv("KDKIT_DATA", str(tree))
    run = preset("okddip_paper", method="okddip", student="resnet34_imagenet", data="imagenet")
    nets = build_students(run, (3, 224, 224), 2).nets
    shared = [all(net.parts[i] is nets[0].parts[i] for net in nets) for i in range(5)]
    assert shared == [True, True, True, False, False]


def test_published_weights_ask_for_imagenets_classes(tree, monkeypatch, tmp_path):
    monkeypatch.setenv("KDKIT_DATA", str(tree))
    monkeypatch.setenv("KDKIT_RUNS", str(tmp_path))
    with pytest.raises(ValueError, match="1000 classes, the data has 2"):
        get(
            preset(
                "dckd_paper",
                method="kd",
                student="resnet18_imagenet",
                data="imagenet",
                teacher="resnet34_imagenet",
                teacher_pretrained=True,
                batch=2,
            )
        )
