"""kdkit's own data sets: what comes out, against torchvision and the original files."""

import csv
import gzip
import hashlib
import importlib.util
import os
import pickle
import struct
import sys
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
from torchvision.transforms import v2
from torchvision.transforms.functional import to_tensor
from torchvision.transforms.v2 import functional as TF

from kdkit import data
from kdkit.study import files, project
from kdkit.study import sources as kd
from kdkit.study.plans import plan, preset

GLYPHS_SHA256 = {  # of the arrays' bytes
    "characters": "666ca842083736d49031468aabcaa688d4fe2d478ea6095cbf764994806936cc",
    "faces": "7702367680f4b0ccdb68750cd944142b885394470524e51db1ac35ae8f18a243",
    "x": "7d1068a3880983dcafdc7b985a3d15939ce5af8bedada8dc1f41e4a8d877d5ab",
    "y": "06889c17a5799e0e10d0f5d6705e17779c7c3ad0c729933bc7c4d7658cb31d3e",
    "face": "ebc1d74ac82f5b7ccc790bb627a2bc204c373dafe522c589ec8116019b624605",
    "x_val": "1d74f563942d169d9a61c074df0d98d0c70aa5f80715d59bc39e13dcbc41554c",
    "y_val": "6c71089b7ad720e255c84b1e3bb5701493ec269e9bf8df78f72f3e5a5cdb85be",
    "face_val": "6f405fdead002b44b820e3978b7461f59b8a739217a35051f95e4c36edb588a5",
    "x_test": "5f4b719978b7344a6abd8d40657a37526ef354f323879d38a0eeccb2697af252",
    "y_test": "06889c17a5799e0e10d0f5d6705e17779c7c3ad0c729933bc7c4d7658cb31d3e",
    "face_test": "8990f147049e5a2cd6ba537966c808c325ac5bdfcccaa28ef4f6b51174525c32",
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(n=40, m=20, classes=5, shape=(3, 32, 32), seed=1):
    g = seeded(seed)
    draw = lambda k: torch.randint(256, (k, *shape), dtype=torch.uint8, generator=g)  # noqa: E731
    return data.Data(
        "tiny",
        classes,
        shape,
        draw(n),
        torch.arange(n) % classes,
        draw(m),
        torch.arange(m) % classes,
        (0.4, 0.5, 0.6)[: shape[0]],
        (0.2, 0.25, 0.3)[: shape[0]],
        tuple("abcde"),
    )


@cache
def make_lesson():
    """The script that made the characters' images, as a module."""
    path = Path(__file__).parents[1] / "benchmarks" / "make_lesson.py"
    spec = importlib.util.spec_from_file_location("make_lesson", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks there for its annotations
    spec.loader.exec_module(module)
    return module


def write_idx(folder, n_train=60, n_test=30, zipped=True):
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (n_train, 28, 28)),
        np.arange(n_train) % 10,
        rng.integers(0, 256, (n_test, 28, 28)),
        np.arange(n_test) % 10,
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, a in zip(files.IDX, arrays, strict=True):
        raw = struct.pack(f">HBB{a.ndim}I", 0, 8, a.ndim, *a.shape) + a.astype(np.uint8).tobytes()
        path = folder / (name + ".gz" * zipped)
        path.write_bytes(gzip.compress(raw) if zipped else raw)
    return arrays


def write_cifar(root, name, n=20, protocol=2):
    rng, made = np.random.default_rng(0), {}
    cls, classes = (tv.CIFAR10, 10) if name == "cifar10" else (tv.CIFAR100, 100)
    folder = root / cls.base_folder
    folder.mkdir(parents=True, exist_ok=True)
    key = "labels" if name == "cifar10" else "fine_labels"
    for file, _ in cls.train_list + cls.test_list:
        x = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
        made[file] = x, [(7 * i) % classes for i in range(n)]
        content = {"data": x, key: made[file][1], "filenames": ["a.png"] * n, "batch_label": "b"}
        (folder / file).write_bytes(pickle.dumps(content, protocol))
    names = [f"class {i}" for i in range(classes)]
    (folder / cls.meta["filename"]).write_bytes(pickle.dumps({cls.meta["key"]: names}, protocol))
    return folder, made, names


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A machine without data: no KDKIT_DATA, none in the project, no system folder."""
    monkeypatch.delenv("KDKIT_DATA", raising=False)
    monkeypatch.setattr(files, "home", lambda: tmp_path)
    monkeypatch.setattr(project, "home", lambda: tmp_path)
    monkeypatch.setattr(files, "SYSTEM", tmp_path / "system")
    return tmp_path


# --- the printed characters --------------------------------------------------------------------

SPLITS = {"train": "", "val": "_val", "test": "_test"}  # of the faces -> end of the arrays' names
PERMISSIVE = {
    "Apache-2.0",
    "BSD",
    "Bitstream-Vera",
    "CC0-1.0",
    "GUST-Font-License",
    "MIT",
    "OFL-1.1",
    "Ubuntu-font-1.0",
    "public-domain",
}


@pytest.fixture(scope="module")
def glyphs():
    """The arrays of the package's file."""
    with np.load(files.GLYPHS, allow_pickle=False) as z:
        return {name: z[name] for name in z.files}


@pytest.fixture(scope="module")
def faces():
    """The rows of the list of typefaces."""
    path = Path(__file__).parents[1] / "benchmarks" / "glyphs_faces.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def licences():
    """(licence, package, version, family) of each line of LICENSE-glyphs."""
    text = files.GLYPHS.with_name("LICENSE-glyphs").read_text(encoding="utf-8")
    return [tuple(line.split("  ")) for line in text.split("\n\n")[1].splitlines()]


def of_split(faces, split):
    return [face for face in faces if face["split"] == split]


def family_of(face, licences):
    """The longest family of the face's package that its name begins with."""
    wanted = face["licence"], face["package"], face["version"]
    mine = [row[-1] for row in licences if row[:-1] == wanted]
    return max((f for f in mine if f"{face['face']} ".startswith(f"{f} ")), key=len)


def test_the_file_of_the_characters(glyphs):
    assert {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in glyphs.items()} == GLYPHS_SHA256
    assert files.GLYPHS.stat().st_size <= 3e6
    with zipfile.ZipFile(files.GLYPHS) as z:  # no time of making, or the bytes would change
        assert {i.date_time for i in z.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_characters_are_balanced_in_every_prefix():
    d = kd.load("glyphs")
    assert d.x.shape == (10_000, 1, 20, 20) == d.x_test.shape
    assert d.x.dtype == d.x_test.dtype == torch.uint8
    assert d.y.dtype == d.y_test.dtype == torch.int64
    assert d.y.tolist() == list(range(100)) * 100 == d.y_test.tolist()
    for n in (100, 2000, 9900):
        part = kd.load("glyphs", n_train=n)
        assert part.y.bincount().tolist() == [n // 100] * 100
        assert part.x.equal(d.x[:n]) and part.x_test.equal(d.x_test)


def test_classes_are_the_characters(glyphs):
    names = kd.load("glyphs").class_names
    assert len(set(names)) == 100 and all(len(name) == 1 for name in names)
    assert names == tuple(glyphs["characters"].tolist()) == tuple(make_lesson().CHARACTERS)
    assert (names[0], names[10], names[36]) == ("0", "A", "a") and {"é", "œ", "ß"} < set(names)


def test_mean_and_deviation_are_those_of_the_training_images(glyphs):
    ink, said = glyphs["x"] / 255, kd.SETS["glyphs"]
    assert said.mean == (round(ink.mean(), 4),) and said.std == (round(ink.std(), 4),)
    assert {kd.load(name).mean for name in ("glyphs", "glyphs_val", "glyphs_few")} == {said.mean}


def test_validation_faces_replace_the_test_faces_alone(glyphs):
    d, val = kd.load("glyphs"), kd.load("glyphs_val")
    assert val.x.equal(d.x) and val.y.equal(d.y)
    assert val.x_test.shape == (6000, 1, 20, 20)
    assert val.y_test.tolist() == list(range(100)) * 60
    assert (val.x_test[:, 0].numpy() == glyphs["x_val"]).all()
    assert (d.x_test[:, 0].numpy() == glyphs["x_test"]).all()


def test_glyphs_few_is_a_part_of_the_characters():
    few, d = kd.load("glyphs_few", n_train=700), kd.load("glyphs", n_train=700)
    assert few.x.equal(d.x) and few.y.equal(d.y) and few.class_names == d.class_names
    assert few.y_test.tolist() == list(range(100)) * 5
    assert few.x_test.equal(d.x_test[:500]) and few.y_test.equal(d.y_test[:500])


def test_the_lesson_is_another_name_of_the_characters():
    d, lesson = kd.load("glyphs"), kd.load("lesson")
    assert lesson.content_digest() == d.content_digest()
    assert plan(preset("lesson", data="lesson")).id == plan(preset("lesson", data="glyphs")).id
    assert plan(preset("lesson")).run.data == "glyphs"
    others = {plan(preset("lesson", data=n)).id for n in ("glyphs", "glyphs_val", "glyphs_few")}
    assert len(others) == 3
    assert kd.identity("lesson") == kd.identity("glyphs") == kd.identity("glyphs_val")


def test_the_images_are_part_of_a_runs_id(monkeypatch):
    """Other pictures in the package are other runs."""
    before = plan(preset("lesson")).id
    monkeypatch.setattr(kd, "_package_digest", lambda: "0" * 64)
    assert plan(preset("lesson")).id != before


def test_every_face_is_in_the_list_in_its_own_set(glyphs, faces):
    assert glyphs["faces"].tolist() == [face["face"] for face in faces]
    for split, end in SPLITS.items():
        used = set(glyphs[f"face{end}"].tolist())
        assert used == {i for i, face in enumerate(faces) if face["split"] == split}
    assert len({face["sha256"] for face in faces}) == len(faces)
    assert {face["split"] for face in faces} == set(SPLITS)


def test_a_test_face_shows_every_character_and_a_class_has_many_faces(glyphs):
    for end, n in (("_val", 60), ("_test", 100)):
        number = glyphs[f"face{end}"].reshape(n, 100)
        assert (number == number[:, :1]).all() and len(set(number[:, 0].tolist())) == n
        assert (glyphs[f"y{end}"].reshape(n, 100) == np.arange(100)).all()
    by_class = glyphs["face"].reshape(100, 100).T  # (classes, images)
    assert all(len(set(row.tolist())) == 100 for row in by_class)
    assert len({row.tobytes() for row in by_class}) == 100  # each in its own order


def test_typefaces_of_the_three_sets_are_strangers(faces, licences):
    groups = {s: {face["group"] for face in of_split(faces, s)} for s in SPLITS}
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        assert groups[a].isdisjoint(groups[b])
    for split in ("val", "test"):
        mine = of_split(faces, split)
        families = [family_of(face, licences) for face in mine]
        assert len(mine) >= 60 and len(set(families)) == len(mine)


def test_typefaces_of_the_three_sets_do_not_look_alike(glyphs, faces):
    """By the measure that groups were made with: squared distance over the mean of squares. Of a
    training face a third of the characters is here."""
    test, val = (
        glyphs[f"x{end}"].reshape(-1, 100, 400) / np.float32(255) for end in ("_test", "_val")
    )
    others, train = np.concatenate([test, val]), glyphs["x"].reshape(-1, 400) / np.float32(255)
    distance, square = np.zeros((2, len(faces), len(others)))
    for c in range(100):
        mine, shown = train[glyphs["y"] == c], others[:, c]
        mean = ((mine**2).sum(1)[:, None] + (shown**2).sum(1)) / 2
        distance[glyphs["face"][glyphs["y"] == c]] += 2 * mean - 2 * mine @ shown.T
        square[glyphs["face"][glyphs["y"] == c]] += mean
    seen = np.unique(glyphs["face"])
    assert (distance[seen] / square[seen]).min() > 0.08
    test, val = test.reshape(-1, 40_000), val.reshape(-1, 40_000)
    mean = ((test**2).sum(1)[:, None] + (val**2).sum(1)) / 2
    assert ((2 * mean - 2 * test @ val.T) / mean).min() > make_lesson().ALIKE == 0.1


def test_no_two_characters_of_a_face_are_alike_to_the_pixel(glyphs):
    for end in SPLITS.values():
        rows = glyphs[f"x{end}"].reshape(-1, 400)
        assert rows.any(1).all()  # and none is blank
        marked = np.c_[glyphs[f"face{end}"].astype(np.int32), rows]
        assert len(np.unique(marked, axis=0)) == len(rows)
    train, seen = ({p.tobytes() for p in glyphs[k]} for k in ("x", "x_test"))
    assert train.isdisjoint(seen)


def test_licences_of_the_typefaces(faces, licences):
    assert {face["licence"] for face in faces} <= PERMISSIVE
    assert PERMISSIVE == set(make_lesson().PERMISSIVE.values())
    assert all(len(row) == 4 for row in licences)
    named = {
        (*(f[k] for k in ("licence", "package", "version")), family_of(f, licences)) for f in faces
    }
    assert named == set(licences) and len(licences) == len(set(licences))


@pytest.mark.parametrize(("test", "n"), [("test", 100), ("val", 60)])
def test_faces_of_the_test_images(glyphs, faces, test, n):
    number, names = kd.glyph_faces(test)
    assert number.tolist() == [i for i in range(n) for _ in range(100)]
    assert list(names) == glyphs["faces"][glyphs[f"face_{test}"][::100]].tolist()
    assert sorted(names) == sorted(face["face"] for face in of_split(faces, test))
    assert len(set(names)) == n and number.dtype == np.int64


def test_there_are_typefaces_of_two_test_sets_alone():
    with pytest.raises(ValueError, match="test set 'train'"):
        kd.glyph_faces("train")


# --- augmentation and normalisation ------------------------------------------------------------


@pytest.mark.parametrize("augment", ["none", "flip", "crop", "crop_flip"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 5, 9)])
def test_augmented_equals_torchvision_at_the_same_offsets(augment, shape):
    x = torch.randint(256, (64, *shape), dtype=torch.uint8, generator=seeded(3))
    got, g = data.augmented(x, augment, seeded(5)), seeded(5)
    want, pad = x, 4 * ("crop" in augment)
    if augment != "none":
        offset = torch.randint(2 * pad + 1, (2, 64), generator=g)
        flips = torch.randint(1 + ("flip" in augment), (64,), generator=g)
        assert not pad or set(offset.flatten().tolist()) == set(range(9))
        assert flips.any() == ("flip" in augment) and not flips.all()
        cut = [
            TF.crop(TF.pad(a, [pad] * 4), int(i), int(j), *shape[1:])
            for a, i, j in zip(x, *offset, strict=True)
        ]
        want = torch.stack(
            [TF.horizontal_flip(a) if f else a for a, f in zip(cut, flips, strict=True)]
        )
    assert got.equal(want) and got.dtype == torch.uint8


def test_crop_and_flip_are_uniform():
    x = torch.zeros(9000, 1, 9, 9, dtype=torch.uint8)
    x[:, 0, 4, 3] = 255  # its place after the crop tells the offsets
    n, _, i, j = data.augmented(x, "crop", seeded()).nonzero().T
    assert len(n) == 9000 - int((data.augmented(x, "crop", seeded()).flatten(1).sum(1) == 0).sum())
    rows = i.bincount(minlength=9)
    assert rows.min() > 0.8 * rows.float().mean() and rows.max() < 1.2 * rows.float().mean()
    flipped = data.augmented(x, "flip", seeded())[:, 0, 4, 5].bool().sum()
    assert 4300 < flipped < 4700 and set(j.tolist()) == set(range(8))


def test_normalise_equals_torchvision():
    """ToTensor of version 1, which the papers' scripts use, to the bit; v2 rounds otherwise."""
    d = tiny()
    first = torch.stack([to_tensor(x.permute(1, 2, 0).numpy()) for x in d.x])
    got = d.normalise(d.x)
    assert got.dtype == torch.float32
    assert got.equal(TF.normalize(first, list(d.mean), list(d.std)))
    second = TF.to_dtype(d.x, torch.float32, scale=True)
    torch.testing.assert_close(
        got,
        TF.normalize(second, list(d.mean), list(d.std)),
        rtol=1e-5,
        atol=1e-6,
        check_stride=False,
    )
    assert got.is_contiguous(memory_format=torch.channels_last)
    grey = tiny(shape=(1, 28, 28))
    assert grey.normalise(grey.x).is_contiguous() and grey.x.dtype == torch.uint8


# --- batches -----------------------------------------------------------------------------------


def epoch(d, generator, augment="crop_flip", batch=8, **more):
    return list(d.batches(True, batch, augment, generator, **more))


def same(a, b):
    return len(a) == len(b) and all(
        u.equal(v) for s, t in zip(a, b, strict=True) for u, v in zip(s, t, strict=True)
    )


def test_training_epoch():
    d = tiny(n=43)
    steps = epoch(d, seeded())
    assert [len(y) for _, y, _ in steps] == [8] * 5  # 43 // 8, the rest is dropped
    index = torch.cat([i for *_, i in steps])
    assert len(set(index.tolist())) == 40 and not index.equal(index.sort().values)
    assert all(y.equal(d.y[i]) for _, y, i in steps)
    plain = epoch(d, seeded(), "none")
    assert all(x.equal(d.normalise(d.x[i])) for x, _, i in plain)
    assert torch.cat([i for *_, i in plain]).equal(index)  # the order is not the augmentation's


def test_start_gives_the_rest_of_the_same_epoch():
    d = tiny()
    whole, g = epoch(d, seeded()), seeded()
    for k in range(6):
        assert same(epoch(d, seeded(), start=k), whole[k:])
    first, second = epoch(d, g), epoch(d, g)
    assert same(first, whole) and not same(second, whole)  # the next epoch is another one
    with pytest.raises(ValueError, match="starts of 0 to 5"):
        d.batches(True, 8, "none", seeded(), start=6)


def test_only_the_given_generator_matters():
    d, g = tiny(), seeded()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a = epoch(d, seeded())
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(2)
    assert same(a, epoch(d, seeded())) and not same(a, epoch(d, seeded(1)))
    steps = d.batches(True, 8, "crop", g)
    after = g.get_state()
    list(steps)  # the one draw was made at the call
    assert g.get_state().equal(after) and not after.equal(seeded().get_state())


def test_evaluation_is_in_order_and_draws_nothing():
    d, g = tiny(m=20), seeded()
    steps = list(d.batches(False, 8, "crop_flip", g))
    assert g.get_state().equal(seeded().get_state())
    assert [len(y) for _, y, _ in steps] == [8, 8, 4]
    assert torch.cat([i for *_, i in steps]).tolist() == list(range(20))
    assert torch.cat([x for x, *_ in steps]).equal(d.normalise(d.x_test))
    assert torch.cat([y for _, y, _ in d.batches(False, 8, "none", None, start=1)]).equal(
        d.y_test[8:]
    )


def test_subset():
    d, some = tiny(), torch.tensor([3, 5, 19])
    ((x, y, index),) = d.batches(False, 10, "none", None, subset=some)
    assert index.equal(some) and y.equal(d.y_test[some]) and x.equal(d.normalise(d.x_test[some]))
    kept = torch.arange(0, 40, 2)
    index = torch.cat([i for *_, i in epoch(d, seeded(), batch=10, subset=kept)])
    assert index.sort().values.equal(kept)


@pytest.mark.parametrize(
    ("batch", "augment", "said"),
    [
        (0, "none", "1 to 40"),
        (41, "none", "1 to 40"),
        (8, "mixup", "unknown augment 'mixup': known: none, flip, crop, crop_flip"),
    ],
)
def test_batches_refuses(batch, augment, said):
    with pytest.raises(ValueError, match=said):
        epoch(tiny(), seeded(), augment, batch)
    with pytest.raises(ValueError, match="mixup"):
        tiny().batch(torch.arange(3), "mixup", seeded())


def test_batch_gathers():
    d, index = tiny(), torch.tensor([5, 2, 2])
    assert d.batch(index, "none", None).equal(d.normalise(d.x[index]))
    want = d.normalise(data.augmented(d.x[index], "crop_flip", seeded(4)))
    assert d.batch(index, "crop_flip", seeded(4)).equal(want)


def test_probe():
    d = kd.load("lesson")
    probe = d.probe()
    assert d.y_test[probe].bincount().tolist() == [10] * 100 and probe.equal(probe.sort().values)
    for c in range(100):
        mine = probe[d.y_test[probe] == c]
        assert mine.equal((d.y_test == c).nonzero()[:10, 0])
    assert d.y_test[d.probe(5)].sort().values.tolist() == [0, 20, 40, 60, 80]
    assert tiny(m=20).probe().tolist() == list(range(20))


def test_interleave_with_uneven_classes():
    y = torch.tensor([1, 1, 0, 1, 2, 0, 1])
    order = data.interleave(y)
    assert y[order].tolist() == [0, 1, 2, 0, 1, 1, 1] and order.tolist() == [2, 0, 4, 5, 1, 3, 6]


# --- names, numbers, missing files -------------------------------------------------------------


def test_datasets_and_unknown_name():
    assert data.list_datasets() == (
        "glyphs",
        "lesson",
        "glyphs_val",
        "glyphs_few",
        "fashion_mnist",
        "fashion_mnist32",
        "cifar10",
        "cifar100",
        "imagenet",
    )
    for door in (kd.load, kd.download, data.load):
        said = "unknown data set 'mnist': .*known: glyphs, "
        with pytest.raises(ValueError, match=said):
            door("mnist")


@pytest.mark.parametrize("n", [-10, 1, 99, 10_001])
def test_n_train_out_of_range(n):
    with pytest.raises(ValueError, match=f"n_train={n}: lesson allows 100 .* to 10000"):
        kd.load("lesson", n_train=n)


@pytest.mark.parametrize(
    ("name", "family", "file"),
    [
        ("fashion_mnist", "fashion_mnist", "train-images-idx3-ubyte"),
        ("fashion_mnist32", "fashion_mnist", "t10k-labels-idx1-ubyte"),
        ("cifar10", "cifar10", "data_batch_5"),
        ("cifar100", "cifar100", "test"),
    ],
)
def test_missing_data_says_what_where_and_how(elsewhere, monkeypatch, name, family, file):
    monkeypatch.setenv("KDKIT_DATA", str(elsewhere / "mine"))
    with pytest.raises(files.MissingData) as e:
        kd.load(name)
    message = str(e.value)
    assert isinstance(e.value, ValueError) and "\n" not in message
    for part in (file, str(elsewhere / "mine"), "data/", f"python -m kdkit data {family}`"):
        assert part in message
    with pytest.raises(files.MissingData) as e:  # an explicit root is the only place
        kd.load(name, root=elsewhere / "here")
    assert str(elsewhere / "here") in str(e.value) and "mine" not in str(e.value)


def test_imagenet_must_come_by_hand(elsewhere):
    for door in (kd.load, kd.download):
        with pytest.raises(files.MissingData, match="train/CLASS.*by hand"):
            door("imagenet")


def test_the_characters_are_there_already(elsewhere):
    for name in ("lesson", "glyphs", "glyphs_val", "glyphs_few"):
        assert kd.download(name, root=elsewhere / "mine") == files.GLYPHS == kd.place_of(name)
        assert kd.load(name, root=elsewhere / "mine").classes == 100
    assert not (elsewhere / "mine").exists()


# --- Fashion-MNIST -----------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("sub", [".", "fashion-mnist", "FashionMNIST/raw"])
def test_fashion_mnist_where_it_may_be(elsewhere, monkeypatch, sub, zipped):
    x, y, x_test, y_test = write_idx(elsewhere / "mine" / sub, zipped=zipped)
    monkeypatch.setenv("KDKIT_DATA", str(elsewhere / "mine"))
    d = kd.load("fashion_mnist")
    assert (d.x[:, 0].numpy() == x).all() and (d.x_test[:, 0].numpy() == x_test).all()
    assert d.y.tolist() == y.tolist() and d.y_test.tolist() == y_test.tolist()
    assert d.shape == (1, 28, 28) and len(d.class_names) == d.classes == 10
    wide = kd.load("fashion_mnist32", root=elsewhere / "mine", n_train=20)
    assert wide.x.shape == (20, 3, 32, 32) and len(wide.mean) == len(wide.std) == 3
    assert wide.x[:, 0].equal(wide.x[:, 2]) and wide.x[:, 1, 2:-2, 2:-2].equal(d.x[:20, 0])
    assert int(wide.x.long().sum()) == 3 * int(d.x[:20].long().sum())  # the frame is black


def test_damaged_idx_files(tmp_path):
    write_idx(tmp_path)
    good = (tmp_path / f"{files.IDX[0]}.gz").read_bytes()
    raw = gzip.decompress(good)
    for bad in (good[:-9], good[:2000] + b"?" + good[2001:], raw[:-1], b"", b"\0\0\x0d" + raw[3:]):
        (tmp_path / f"{files.IDX[0]}.gz").write_bytes(bad)
        with pytest.raises(ValueError, match="train-images.*not a whole idx file"):
            kd.load("fashion_mnist", root=tmp_path)
    (tmp_path / f"{files.IDX[0]}.gz").write_bytes((tmp_path / f"{files.IDX[2]}.gz").read_bytes())
    with pytest.raises(ValueError, match=r"\(30, 28, 28\) with labels \(60,\)"):
        kd.load("fashion_mnist", root=tmp_path)


# --- CIFAR -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*not the published file")
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_small_cifar_files(tmp_path, name, protocol):
    folder, made, names = write_cifar(tmp_path, name, protocol=protocol)
    for root in (tmp_path, folder):
        d = kd.load(name, root=root)
    parts = [v for k, v in made.items() if not k.startswith("test")]
    x = np.concatenate([v[0] for v in parts]).reshape(-1, 3, 32, 32)
    ((test_x, test_y),) = (v for k, v in made.items() if k.startswith("test"))
    assert (d.x.numpy() == x).all() and d.y.tolist() == [y for v in parts for y in v[1]]
    assert (d.x_test.numpy() == test_x.reshape(-1, 3, 32, 32)).all()
    assert d.y_test.tolist() == test_y and d.class_names == tuple(names)
    assert (d.shape, d.classes) == ((3, 32, 32), len(names)) and d.y.dtype == torch.int64


def test_cifar_as_python_2_wrote_it(tmp_path):
    """The published files hold Python 2 text where Python 3 writes bytes."""
    x = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    raw, short = x.tobytes(), lambda t: b"U" + bytes([len(t)]) + t  # SHORT_BINSTRING
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85"
        + short(b"b")
        + b"\x87R(K\x01K\x02M\0\x0c\x86cnumpy\ndtype\n"
        + short(b"u1")
        + b"K\0K\x01\x87R(K\x03"
        + short(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
        + b"\x89T"
        + struct.pack("<I", len(raw))
        + raw
        + b"tb"
    )
    content = b"\x80\x02}(" + short(b"data") + array + short(b"fine_labels") + b"](K\x03K\x63eu."
    assert (pickle.loads(content, encoding="latin1")["data"] == x).all()  # noqa: S301, as intended
    folder, *_ = write_cifar(tmp_path, "cifar100")
    (folder / "train").write_bytes(content)
    with pytest.warns(UserWarning, match="not the published file"):
        d = kd.load("cifar100", root=tmp_path)
    assert (d.x.numpy().reshape(2, 3072) == x).all() and d.y.tolist() == [3, 99]


class Evil:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, protocol):
    folder, *_ = write_cifar(tmp_path, "cifar100")
    mark = tmp_path / "ran"
    for evil in (
        Evil(os.system, f"touch {mark}"),
        Evil(eval, f"open({str(mark)!r}, 'w')"),
        Evil(Path.touch, mark),
        Evil(np.load, str(mark)),
    ):
        for content in (evil, {"data": evil, "fine_labels": []}):
            (folder / "train").write_bytes(pickle.dumps(content, protocol))
            with pytest.raises(ValueError, match="train: refused.*allowed are plain arrays") as e:
                kd.load("cifar100", root=tmp_path)
            assert not mark.exists() and "\n" not in str(e.value)


@pytest.mark.filterwarnings("ignore:.*not the published file")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds a list"),
        ({"fine_labels": [1]}, "allowed are .n, 3072. bytes"),
        ({"data": "pixels", "fine_labels": [1]}, "allowed are .n, 3072. bytes"),
        ({"data": np.zeros((2, 3072), np.uint8)}, "allowed are .n, 3072. bytes"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1]}, r"labels \(1,\)"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1, 0.5]}, "whole numbers"),
        ({"data": np.zeros((2, 3071), np.uint8), "fine_labels": [1, 2]}, r"data \(2, 3071\)"),
        ({"data": np.zeros((2, 3072), np.int64), "fine_labels": [1, 2]}, "array of i8"),
        ({"data": np.array([None]), "fine_labels": [1]}, "array of O8"),
        (
            {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1, 100]},
            "labels 1 to 100, allowed",
        ),
        (
            {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [-1, 9]},
            "labels -1 to 9, allowed",
        ),
    ],
)
def test_wrong_cifar_content(tmp_path, content, said):
    folder, *_ = write_cifar(tmp_path, "cifar100")
    (folder / "train").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(ValueError, match=said):
        kd.load("cifar100", root=tmp_path)


@pytest.mark.filterwarnings("ignore:.*not the published file")
def test_damaged_cifar_files(tmp_path):
    folder, *_ = write_cifar(tmp_path, "cifar10")
    good = (folder / "data_batch_3").read_bytes()
    for bad in (b"", good[: len(good) // 2], good[:-1], b"not a pickle", b"\x80\x02Nb."):
        (folder / "data_batch_3").write_bytes(bad)
        with pytest.raises(ValueError, match="data_batch_3"):
            kd.load("cifar10", root=tmp_path)
    (folder / "data_batch_3").write_bytes(good)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["one"]}, 2))
    with pytest.raises(ValueError, match="batches.meta: allowed is a list of 10"):
        kd.load("cifar10", root=tmp_path)


@pytest.mark.filterwarnings("ignore:.*not the published file")
def test_n_train_is_balanced_for_other_sets(tmp_path):
    write_cifar(tmp_path, "cifar10")
    whole, d = kd.load("cifar10", root=tmp_path), kd.load("cifar10", n_train=30, root=tmp_path)
    assert d.y.bincount().tolist() == [3] * 10 and len(d.x) == 30
    for c in range(10):
        assert d.x[d.y == c].equal(whole.x[whole.y == c][:3])
    assert kd.load("cifar10", n_train=20, root=tmp_path).x.equal(d.x[:20])


@pytest.mark.filterwarnings("ignore:.*not the published file")
def test_download_goes_through_torchvision(elsewhere, monkeypatch, capsys):
    """No network: torchvision's one function is replaced by one that makes small files."""
    from torchvision.datasets import utils

    asked = []

    def fake(url, root, md5):
        asked.append((url, Path(root), md5))
        write_cifar(Path(root), "cifar100")
        print("bar", file=sys.stderr)

    monkeypatch.setattr(utils, "download_and_extract_archive", fake)
    there = kd.download("cifar100", progress=False)
    assert there == elsewhere / "data/cifar-100-python" and capsys.readouterr().err == ""
    assert asked == [(tv.CIFAR100.url, elsewhere / "data", tv.CIFAR100.tgz_md5)]
    assert kd.load("cifar100").classes == 100
    assert kd.download("cifar100") == there and len(asked) == 1  # what is there is left alone
    monkeypatch.setenv("KDKIT_DATA", str(elsewhere / "mine"))
    monkeypatch.setattr(
        utils,
        "download_and_extract_archive",
        lambda url, root, md5: write_idx(Path(root)) and asked.append((url, md5)),
    )
    assert kd.download("fashion_mnist32") == elsewhere / "mine" / "FashionMNIST" / "raw"
    assert [md5 for _, md5 in asked[1:]] == [md5 for _, md5 in tv.FashionMNIST.resources]


# --- ImageNet ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """13 training and 4 validation JPEGs of odd sizes in two classes."""
    root, g = tmp_path_factory.mktemp("imagenet"), seeded()
    for part, counts in (("train", (7, 6)), ("val", (2, 2))):
        for name, n in zip(("n01", "n02"), counts, strict=True):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                coarse = torch.randint(256, (3, 5, 4), dtype=torch.uint8, generator=g)
                image = TF.to_pil_image(TF.resize(coarse, [60 + 7 * i, 50 + 3 * i]))
                image.save(root / part / name / f"{i}.JPEG")
    return root


def test_imagenet_attributes_and_validation_images(tree):
    d = kd.load("imagenet", root=tree, workers=0)
    assert (d.name, d.classes, d.shape) == ("imagenet", 2, (3, 224, 224))
    assert d.class_names == ("n01", "n02") and d.y.tolist() == [0] * 7 + [1] * 6
    assert len(d.x) == 13 and len(d.x_test) == 4 and d.probe(2).tolist() == [0, 2]
    whole = v2.Compose(
        [
            v2.Resize(256),
            v2.CenterCrop(224),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(d.mean, d.std),
        ]
    )
    want = torch.stack([x for x, _ in tv.ImageFolder(tree / "val", whole)])
    steps = list(d.batches(False, 3, "none", None))
    got = torch.cat([x for x, *_ in steps])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6, check_stride=False)
    assert torch.cat([y for _, y, _ in steps]).equal(d.y_test)
    assert torch.cat([i for *_, i in steps]).tolist() == [0, 1, 2, 3]
    ((x, _, i),) = d.batches(False, 3, "none", None, subset=torch.tensor([1, 3]))
    assert x.equal(got[[1, 3]]) and i.tolist() == [1, 3]


def test_imagenet_epochs_do_not_depend_on_workers(tree):
    alone, helped = (kd.load("imagenet", root=tree, workers=n) for n in (0, 2))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    whole = epoch(alone, seeded(), batch=4)
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(2)
    assert len(whole) == 3 and all(x.shape == (4, 3, 224, 224) for x, *_ in whole)
    assert all(y.equal(alone.y[i]) for _, y, i in whole)
    assert same(whole, epoch(helped, seeded(), batch=4))
    assert same(whole[1:], epoch(helped, seeded(), batch=4, start=1))
    next(helped.batches(True, 4, "none", seeded(9)))  # an epoch left early harms nothing
    g = seeded()
    assert same(whole, epoch(helped, g, batch=4)) and not same(whole, epoch(helped, g, batch=4))


def test_imagenet_augmentation_is_torchvisions(tree):
    d = kd.load("imagenet", root=tree, workers=0)
    image = d.x[8, 123]
    crop = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.ToImage()])
    with torch.random.fork_rng():
        torch.manual_seed(123)
        want, label = tv.ImageFolder(tree / "train", crop)[8]
    assert image.equal(want) and d.y[8] == label
    index = torch.tensor([8, 8, 2])
    a, b = d.batch(index, "crop", seeded()), d.batch(index, "crop", seeded())
    assert a.equal(b) and not a[0].equal(a[1]) and a.shape == (3, 3, 224, 224)


def test_imagenet_n_train_and_errors(tree, tmp_path):
    d = kd.load("imagenet", root=tree, n_train=4, workers=0)
    assert d.y.tolist() == [0, 1, 0, 1] and len([d.x[i, 0] for i in range(4)]) == len(d.x) == 4
    with pytest.raises(ValueError, match="imagenet allows 2 .* to 13"):
        kd.load("imagenet", root=tree, n_train=14)
    for part in ("train/a", "val/b"):
        (tmp_path / part).mkdir(parents=True)
        with pytest.raises(ValueError, match="imagenet|not one folder per class"):
            kd.load("imagenet", root=tmp_path)
        TF.to_pil_image(torch.zeros(3, 9, 9)).save(tmp_path / part / "0.JPEG")
    with pytest.raises(ValueError, match=r"same classes, only one has \['a', 'b'\]"):
        kd.load("imagenet", root=tmp_path)
