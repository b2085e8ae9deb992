"""Data of one's own: tensors, arrays and torch Datasets; names; what a data set's digest is of."""

import doctest
import os
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import elsewhere, epoch, same, seeded, tiny, write_cifar, write_idx  # noqa: F401
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import kdkit.data
from kdkit.data import dataset, interleave, load, register_dataset, tensors
from kdkit.study import files, sources


def images(n=12, shape=(3, 6, 5), seed=0):
    return torch.randint(256, (n, *shape), dtype=torch.uint8, generator=seeded(seed))


def parts(n=12, m=6, classes=3, shape=(3, 6, 5)):
    return (
        images(n, shape),
        torch.arange(n) % classes,
        images(m, shape, 1),
        torch.arange(m) % classes,
    )


@pytest.fixture
def registry():
    before = dict(kdkit.data.DATASETS)
    yield
    kdkit.data.DATASETS.clear()
    kdkit.data.DATASETS.update(before)


def one_line(e, *said):
    assert "\n" not in str(e.value) and all(s in str(e.value) for s in said), str(e.value)


def test_examples(registry):
    failed, run = doctest.testmod(kdkit.data)
    assert failed == 0 and run == 11


def test_the_engine_needs_torch_and_numpy_alone():
    code = (
        "import sys, types, pathlib\n"
        "top = types.ModuleType('kdkit'); top.__path__ = [sys.argv[1]]\n"
        "sys.modules['kdkit'] = top\n"
        "import kdkit.data\n"
        "print(*(m for m in ('PIL', 'torchvision', 'pandas', 'matplotlib', 'kdkit.study') "
        "if m in sys.modules))"
    )
    package = os.path.dirname(os.path.dirname(kdkit.data.__file__))
    out = subprocess.run(
        [sys.executable, "-c", code, package], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == ""


# --- tensors -----------------------------------------------------------------------------------


def test_tensors_of_any_channels_sizes_and_types():
    x, y, x_test, y_test = parts(shape=(2, 6, 5), classes=4)
    d = tensors(x, y, x_test, y_test)
    assert (d.shape, d.classes, d.class_names) == ((2, 6, 5), 4, ("0", "1", "2", "3"))
    assert d.x.data_ptr() == x.data_ptr() and d.y.data_ptr() == y.data_ptr()  # no copy
    pixels = x.double() / 255
    np.testing.assert_allclose(d.mean, pixels.mean((0, 2, 3)))
    np.testing.assert_allclose(d.std, pixels.std((0, 2, 3), correction=0))
    z = d.normalise(x).transpose(0, 1).flatten(1)
    assert z.mean(1).abs().max() < 1e-5 and (z.std(1, correction=0) - 1).abs().max() < 1e-5
    grey = tensors(x[:, 0].numpy(), y.tolist(), x_test[:, 0].numpy(), y_test.numpy())
    assert grey.shape == (1, 6, 5) and grey.x[:, 0].equal(x[:, 0]) and grey.y.dtype == torch.int64
    for kind in (torch.float64, torch.float16, torch.bfloat16, torch.float32):
        f = tensors((x - 100.0).to(kind), y.to(torch.float16), x_test.to(kind), y_test.int())
        assert f.x.dtype == f.x_test.dtype == torch.float32 and f.y.equal(y)
        z = f.normalise(f.x)
        assert z.equal(
            (f.x - torch.tensor(f.mean)[:, None, None]) / torch.tensor(f.std)[:, None, None]
        )
    for kind in (np.uint8, np.int16, np.uint16, np.uint32, np.uint64, np.float64):
        assert tensors(x, y.numpy().astype(kind), x_test, y_test.numpy().astype(kind)).y.equal(y)


def test_tensors_share_awkward_arrays_and_change_nothing():
    x, y, x_test, y_test = (v.numpy() for v in parts())
    backwards, frozen = x[::-1, :, :, ::-1], x_test.copy()
    frozen.flags.writeable = False
    big = x.astype(np.float32)
    before = backwards.copy(), frozen.copy(), big.copy()
    d = tensors(backwards, y, frozen, y_test)
    assert (d.x.numpy() == backwards).all() and (d.x_test.numpy() == frozen).all()
    assert (tensors(big, y, x_test.astype(np.float32), y_test).x.numpy() == x).all()
    list(d.batches(True, 4, "crop_flip", seeded()))
    assert all((a == b).all() for a, b in zip(before, (backwards, frozen, big), strict=True))
    assert tensors(x, y, x_test, y_test).x.data_ptr() == torch.from_numpy(x).data_ptr()
    hwc = x.transpose(0, 2, 3, 1).copy()
    assert (tensors(hwc.transpose(0, 3, 1, 2), y, x_test, y_test).x.numpy() == x).all()
    leaf = torch.rand(12, 6, 5, requires_grad=True)
    assert not tensors(leaf, y, leaf, y).x.requires_grad


def test_constant_channels_get_the_deviation_one():
    x, y, x_test, y_test = parts()
    x[:, 1] = 77
    d = tensors(x, y, x_test, y_test)
    assert d.std[1] == 1 and d.normalise(x)[:, 1].abs().max() < 1e-6
    f = tensors(torch.full((9, 1, 3, 2), 0.1), y[:9], torch.zeros(2, 1, 3, 2), y[:2])
    assert f.std == (1.0,) and not f.normalise(f.x).any()
    d = tensors(x, y, x_test, y_test, mean=np.float32([0.1, 0.2, 0.3]), std=[0.5, 1, 2])
    assert d.std == (0.5, 1.0, 2.0) and d.mean == pytest.approx((0.1, 0.2, 0.3))
    assert tensors(x, y, x_test, y_test, std=(1, 2, 3)).mean == tensors(x, y, x_test, y_test).mean


def test_many_images_have_the_mean_of_all(monkeypatch):
    x = torch.rand(5000, 1, 40, 40, generator=seeded()) + 1e3  # more than one part
    d = tensors(x, torch.arange(5000) % 2, x[:2], [0, 1])
    np.testing.assert_allclose(d.mean, [x.double().mean()], rtol=1e-12)
    np.testing.assert_allclose(d.std, [x.double().std(correction=0)], rtol=1e-7)


X, Y, XT, YT = parts()
WRONG = [
    (dict(x=X.permute(0, 2, 3, 1)), ["(12, 6, 5, 3)", "(N, C, H, W)", "permute(0, 3, 1, 2)"]),
    (dict(x=X.permute(0, 2, 3, 1)[..., :1].numpy()), ["(12, 6, 5, 1)", "permute"]),
    (dict(x=X.long()), ["torch.int64", "uint8", "float"]),
    (dict(x=X > 3), ["torch.bool", "uint8"]),
    (dict(x=X + 1j), ["torch.complex64", "uint8"]),
    (dict(x=X[0, 0]), ["(6, 5)", "(N, H, W)"]),
    (dict(x=X[None]), ["(1, 12, 3, 6, 5)"]),
    (dict(x=X[:0]), ["(0, 3, 6, 5)"]),
    (dict(x_test=XT[:0], y_test=YT[:0]), ["x_test", "(0, 3, 6, 5)"]),
    (dict(x=np.array([["a"]])), ["x: allowed are tensors and arrays of numbers"]),
    (dict(x=[object()]), ["allowed are tensors"]),
    (dict(x=None), ["allowed are tensors"]),
    (dict(x=X.float().index_fill(0, torch.tensor([4]), float("nan"))), ["x is not finite"]),
    (dict(x=X.double() * 1e300), ["x is not finite"]),
    (dict(x_test=XT[..., :4]), ["(3, 6, 5)", "(3, 6, 4)", "one shape"]),
    (dict(x_test=XT.float()), ["torch.uint8", "torch.float32"]),
    (dict(y=Y[:5]), ["y has the shape (5,), allowed is (12,)"]),
    (dict(y=torch.eye(12)), ["(12, 12)", "(12,)"]),
    (dict(y=Y - 1), ["y holds -1", "whole numbers from 0"]),
    (dict(y=Y + 0.5), ["y holds 0.5", "whole"]),
    (dict(y=Y / torch.zeros(12)), ["nan", "whole"]),
    (dict(y=torch.full((12,), float("inf"))), ["inf"]),
    (dict(y=["cat"] * 12), ["y: allowed are tensors and arrays of numbers"]),
    (dict(y=Y + 2**60), ["999999"]),
    (dict(names=["a", "b"]), ["label 2", "2 names allow 0 to 1"]),
    (dict(mean=[0.5]), ["mean=[0.5]", "3 numbers"]),
    (dict(mean=[0.5, None, 1]), ["mean: allowed are", "numbers"]),
    (dict(std=[0.5, 0, 1]), ["std=", "above 0"]),
    (dict(std=[1, 1, float("nan")]), ["above 0"]),
    (dict(std="abc"), ["std: allowed are", "numbers"]),
]


@pytest.mark.parametrize(("changes", "said"), WRONG)
def test_tensors_refuses_in_one_line(changes, said):
    given = dict(x=X, y=Y, x_test=XT, y_test=YT) | changes
    with pytest.raises(ValueError) as e:
        tensors(**given)
    one_line(e, *said)


def test_small_and_narrow_images_are_no_channels_last():
    for shape in ((3, 3, 3), (64, 4, 4), (10, 1, 1), (1, 1, 3), (3, 32, 3)):
        d = tensors(*parts(shape=shape))
        assert (
            d.shape == shape and d.batch(torch.tensor([0]), "crop_flip", seeded()).isfinite().all()
        )


# --- Data --------------------------------------------------------------------------------------


def test_float_images_are_augmented_as_bytes_are():
    d = tiny()
    f = replace(d, x=d.x / 255, x_test=d.x_test / 255)
    assert same(epoch(f, seeded()), epoch(d, seeded()))


def test_a_function_as_augment():
    d, calls = tiny(), []

    def noise(x, generator):
        calls.append(x.clone())
        return x + torch.randint(3, x.shape, generator=generator).to(torch.uint8)

    steps = epoch(d, seeded(), noise)
    assert same(steps, epoch(d, seeded(), noise)) and not same(steps, epoch(d, seeded(), "none"))
    assert calls[0].dtype == torch.uint8 and calls[0].equal(d.x[steps[0][2]])
    for wrong in (lambda x, g: x[:1], lambda x, g: x / 255, lambda x, g: None):
        with pytest.raises(ValueError, match="augment returned .*allowed is") as e:
            epoch(d, seeded(), wrong)
        one_line(e, "torch.uint8")


def test_to_and_subset():
    d = tiny()
    assert d.to("cpu").x is d.x and d.subset(0) is d
    m = d.to("meta")
    assert {t.device.type for t in (m.x, m.y, m.x_test, m.y_test)} == {"meta"} and d.x.is_cpu
    part = d.subset(10)
    assert part.x.equal(d.x[interleave(d.y)[:10]]) and part.x_test is d.x_test
    with pytest.raises(ValueError, match="n_train=4: tiny allows 5 .* to 40"):
        d.subset(4)


def test_data_is_a_torch_dataset():
    d = tiny()
    x, y = d[7]
    assert x.equal(d.normalise(d.x[7:8])[0]) and y == 2 and type(y) is int and len(d) == 40
    assert d[-1][0].equal(d[39][0]) and len(list(d)) == 40
    x, y = next(iter(DataLoader(d, batch_size=6)))
    assert x.equal(d.normalise(d.x[:6])) and y.equal(d.y[:6]) and y.dtype == torch.int64


def test_content_digest_is_of_everything_that_decides():
    d = tiny()
    digest = d.content_digest()
    assert len(digest) == 64 and digest == tiny().content_digest()
    assert replace(d, name="other").content_digest() == digest
    assert (
        replace(d, x=d.x.contiguous(memory_format=torch.channels_last)).content_digest() == digest
    )
    x = d.x.clone()
    x[3, 1, 2, 2] ^= 1
    changed = [
        replace(d, x=x),
        replace(d, x_test=d.x_test[:, :, ::1].flip(0)),
        replace(d, y=d.y.flip(0)),
        replace(d, y_test=d.y_test.flip(0)),
        replace(d, x=d.x.float(), x_test=d.x_test.float()),
        replace(d, mean=(0.4, 0.5, 0.7)),
        replace(d, std=(0.2, 0.25, 0.31)),
        replace(d, class_names=tuple("abcdf")),
        replace(d, x=d.x.view(40, 3, 16, 64)),
        d.subset(10),
    ]
    assert len({digest, *(c.content_digest() for c in changed)}) == 11


def test_probe_with_more_classes_than_test_images_show():
    x, y, x_test, y_test = parts(m=6, classes=3)
    d = tensors(x, y, x_test, y_test + 4, names=map(str, range(2000)))
    assert d.probe().tolist() == list(range(6)) and d.probe(2).tolist() == [0, 1]


# --- Stream ------------------------------------------------------------------------------------


class Pairs(Dataset):
    """Items made by a function; keeps no labels unless told to."""

    def __init__(self, n, item, **kept):
        self.n, self.item = n, item
        vars(self).update(kept)

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if not 0 <= i < self.n:
            raise IndexError(i)
        return self.item(i)


def test_a_stream_gives_what_tensors_give():
    x, y, x_test, y_test = parts(n=15)
    train, test = TensorDataset(x, y), TensorDataset(x_test, y_test)
    s, d = dataset(train, test, names=list("abc")), tensors(x, y, x_test, y_test, list("abc"))
    assert (s.classes, s.shape, s.class_names) == (d.classes, d.shape, d.class_names)
    np.testing.assert_allclose(s.mean + s.std, d.mean + d.std)
    s = replace(s, mean=d.mean, std=d.std)
    assert s.y.equal(d.y) and s.y_test.equal(d.y_test) and len(s) == 15
    assert same(list(s.batches(False, 4, "none", None)), list(d.batches(False, 4, "none", None)))
    assert same(epoch(s, seeded(), "none", 4), epoch(d, seeded(), "none", 4))
    assert s[3][0].equal(d[3][0]) and s[3][1] == d[3][1] and s.probe(3).equal(d.probe(3))
    a, b = s.subset(6), d.subset(6)
    assert same(epoch(a, seeded(), "none", 3), epoch(b, seeded(), "none", 3)) and a.y.equal(b.y)
    assert s.to("cpu").y is s.y and s.to("meta").y.is_meta
    with pytest.raises(ValueError, match="unknown augment 'mixup'"):
        epoch(s, seeded(), "mixup", 4)


def noisy(i):
    """Draws as torch's and torchvision's transforms do."""
    return torch.rand(1, 4, 4) + torch.randint(9, (1,)) / 9, i % 2


def test_streams_do_not_depend_on_workers_or_global_generators():
    train = Pairs(11, noisy)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    alone, helped = (dataset(train, train, workers=n) for n in (0, 2))
    whole = epoch(alone, seeded(), "crop_flip", 3)
    assert torch.get_rng_state().equal(state[0]) and random.getstate() == state[1]
    assert np.random.get_state()[1].tolist() == state[2]
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    assert same(whole, epoch(helped, seeded(), "crop_flip", 3))
    assert same(whole[1:], epoch(helped, seeded(), "crop_flip", 3, start=1))
    assert not same(whole, epoch(alone, seeded(), "none", 3))  # the name did something
    assert alone.mean == helped.mean and alone.content_digest() == helped.content_digest()


def test_a_streams_batch_and_batches_agree():
    s = dataset(
        TensorDataset(images(), torch.arange(12) % 3), TensorDataset(images(3), torch.arange(3))
    )

    def flip(x, g):
        return x.flip(3) if torch.randint(2, (), generator=g) else x  # noqa: E731

    for augment in ("crop_flip", flip):
        own = seeded(int(torch.randint(2**62, (), generator=seeded())))
        torch.randperm(12, generator=own)
        seeds = torch.randint(2**62, (3,), generator=own).tolist()
        for (x, _, index), seed in zip(epoch(s, seeded(), augment, 4), seeds, strict=True):
            assert x.equal(s.batch(index, augment, seeded(seed)))
    assert s.batch(torch.tensor([1]), "none", None).equal(s.normalise(images()[1:2]))


def test_items_may_be_pictures_arrays_and_grey():
    x = images(4, (5, 4, 3)).numpy()
    colour = [Image.fromarray(v) for v in x]
    wanted = torch.from_numpy(x).permute(0, 3, 1, 2)
    label = lambda k: [k % 2, torch.tensor(k % 2), np.int64(k % 2), float(k % 2)][k]  # noqa: E731
    for item, shape, found in (
        (lambda k: colour[k], (3, 5, 4), wanted),
        (lambda k: colour[k].convert("L"), (1, 5, 4), None),
        (lambda k: colour[k].convert("P"), (3, 5, 4), None),
        (lambda k: colour[k].convert("RGBA"), (4, 5, 4), None),
        (lambda k: colour[k].convert("F"), (1, 5, 4), None),
        (lambda k: x[k, :, ::-1, 0], (1, 5, 4), wanted[:, :1].flip(3)),
        (lambda k: wanted[k].double(), (3, 5, 4), wanted.float()),
    ):
        data = Pairs(4, lambda k, item=item: (item(k), label(k)))
        s = dataset(data, data)
        assert s.shape == shape and s.y.tolist() == [0, 1, 0, 1]
        got = torch.cat([s.x.still(k) for k in range(4)])
        assert found is None or got.equal(found)
        assert len(list(s.batches(False, 3, "none", None))) == 2


def test_labels_are_read_from_attributes_only_where_they_hold():
    x = images(60)

    def counted(i):
        seen.append(i)
        return x[i], i % 3

    right = [i % 3 for i in range(60)]
    for kept, whole in (
        (dict(targets=right), False),
        (dict(labels=np.array(right)), False),
        (dict(y=torch.tensor(right)), False),
        (dict(targets=right, target_transform=lambda y: y), True),
        (dict(targets=right[:5], labels=["a"] * 60, y=lambda: right), True),
        ({}, True),
    ):
        seen = []
        data = Pairs(60, counted, **kept)
        s = dataset(data, data, mean=[0.5] * 3, std=[1] * 3)
        assert s.y.tolist() == right and (len(seen) >= 2 * 60) == whole
    data = Pairs(60, counted, targets=[0] * 60)
    with pytest.raises(ValueError, match="item 1 of train has the label 1, allowed is 0"):
        dataset(data, data)
    part = Subset(Pairs(60, counted, targets=right), [1, 2, 4, 5])
    assert dataset(part, part).y.tolist() == [1, 2, 1, 2]


def test_the_mean_of_a_large_stream_is_a_samples():
    seen = []

    def item(i):
        seen.append(i)
        return torch.full((1, 2, 2), float(i)), i % 2

    s = dataset(Pairs(5000, item, targets=[i % 2 for i in range(5000)]), Pairs(2, item))
    sample = range(0, 5000, 3)
    np.testing.assert_allclose(s.mean, [np.mean(sample)])
    assert len(seen) < 2100


@pytest.mark.parametrize("workers", [0, 1])
def test_items_that_do_not_fit_are_told_in_one_line(workers):
    odd = Pairs(6, lambda i: (images(shape=(3, 4 + (i == 4), 4))[i], i % 2))
    good = Pairs(6, lambda i: (images(shape=(3, 4, 4))[i], i % 2))
    with pytest.raises(ValueError) as e:
        dataset(odd, good)
    one_line(e, "item 4 of train", "(3, 5, 4)", "(3, 4, 4)")
    s = dataset(good, odd, workers=workers)
    with pytest.raises(ValueError) as e:
        list(s.batches(False, 3, "none", None))
    assert all(word in str(e.value) for word in ("item 4 of test", "(3, 5, 4)", "(3, 4, 4)"))
    s = dataset(good, good, workers=workers)
    object.__setattr__(s.x, "source", Pairs(6, lambda i: (images(shape=(3, 4, 4))[i], 1)))
    with pytest.raises(ValueError, match="of train has the label 1, allowed is 0"):
        epoch(s, seeded(), "none", 6)


def test_dataset_refuses_in_one_line():
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(())

    x, good = images(), TensorDataset(images(), torch.arange(12) % 3)
    for train, said in (
        (Endless(), ["Endless", "len()"]),
        ([], ["list", "items"]),
        (7, ["int"]),
        (Pairs(3, lambda i: {"image": x[i]}), ["(image, label)"]),
        (Pairs(3, lambda i: (x[i], 0, 1)), ["(image, label)"]),
        (Pairs(3, lambda i: (x[i].permute(1, 2, 0), 0)), ["permute", "item 0"]),
        (Pairs(3, lambda i: (x[i].long(), 0)), ["int64", "uint8"]),
        (Pairs(3, lambda i: (x[i], -1)), ["labels of train", "-1"]),
        (Pairs(3, lambda i: (x[i], "cat")), ["labels of train", "numbers"]),
        (Pairs(3, lambda i: (x[i], [0, 1])), ["labels of train", "(3, 2)"]),
        (Pairs(3, lambda i: ("a.png", 0)), ["item 0 of train"]),
        (Pairs(3, lambda i: (x[i] / 0 * 0, 0)), ["not finite"]),
        (TensorDataset(x.float(), torch.zeros(12)), ["one shape and type"]),
    ):
        with pytest.raises(ValueError) as e:
            dataset(train, good)
        one_line(e, *said)
    with pytest.raises(ValueError, match="2 names allow"):
        dataset(good, good, names=["a", "b"])


def test_a_streams_digest():
    x, y, x_test, y_test = parts()
    made = lambda v=x, w=y: dataset(TensorDataset(v, w), TensorDataset(x_test, y_test))  # noqa: E731
    s, changed = made(), x.clone()
    changed[5, 0, 0, 0] ^= 1
    found = [s, replace(made(changed), mean=s.mean, std=s.std), made(w=y.flip(0)), s.subset(6)]
    assert len({d.content_digest() for d in found}) == 4
    assert made().content_digest() == s.content_digest()
    calls = []
    told = replace(s, identity=lambda: calls.append(1) or "mine")
    object.__setattr__(told.x, "source", None)  # no item is read
    assert told.content_digest() == told.content_digest() and calls == [1]
    assert told.content_digest() == replace(told, identity=lambda: "mine").content_digest()
    others = [replace(told, identity=lambda: "other"), told.subset(6), told.subset(9)]
    assert len({d.content_digest() for d in (told, *others)}) == 4


# --- names -------------------------------------------------------------------------------------


def test_registered_names(registry):
    @register_dataset("mine", "also_mine")
    def mine():
        return tensors(*parts())

    assert kdkit.data.list_datasets()[-2:] == ("mine", "also_mine")
    assert kdkit.data.loader_of("mine") is mine and mine().name == "tensors"
    d = load("also_mine", n_train=6)
    assert d.name == "also_mine" and len(d) == 6
    with pytest.raises(ValueError, match="n_train=1: mine allows 3"):
        load("mine", n_train=1)
    with pytest.raises(ValueError, match="unknown data set 'min': did you mean mine"):
        load("min")
    register_dataset("mine")(lambda: dataset(*[TensorDataset(X, Y)] * 2))
    assert type(load("mine")).__name__ == "Stream" and load("mine").name == "mine"
    register_dataset("mine")(lambda: (X, Y))
    with pytest.raises(ValueError, match="'mine' is a tuple, allowed is"):
        load("mine")
    assert sources.load("also_mine", n_train=6, root="nowhere", workers=3).y.equal(d.y)


# --- files -------------------------------------------------------------------------------------


def test_relative_places_are_the_projects(elsewhere, monkeypatch):  # noqa: F811
    monkeypatch.chdir("/")
    write_idx(elsewhere / "data" / "fashion-mnist")
    assert files.find("fashion_mnist", None) == elsewhere / "data" / "fashion-mnist"
    monkeypatch.setenv("HOME", str(elsewhere / "home"))
    write_idx(elsewhere / "home" / "sets")
    write_idx(elsewhere / "near")
    for given, place in (
        ("~/sets", "home/sets"),
        ("near", "near"),
        ("absent", "data/fashion-mnist"),
    ):
        monkeypatch.setenv("KDKIT_DATA", given)
        assert files.find("fashion_mnist", None) == elsewhere / place
    assert files.find("fashion_mnist", "~/sets") == elsewhere / "home" / "sets"


def test_identity_of_files(elsewhere, monkeypatch):  # noqa: F811
    digest, how = sources.identity("lesson")
    assert how == "package" and len(digest) == 64
    assert sources.identity("glyphs_few", elsewhere) == (digest, how)  # always the package's
    write_idx(elsewhere / "packed")
    write_idx(elsewhere / "plain", zipped=False)
    packed, plain = (sources.identity("fashion_mnist", elsewhere / k) for k in ("packed", "plain"))
    assert packed == plain and packed[1] == "contents" and len(packed[0]) == 64
    assert sources.identity("fashion_mnist32", elsewhere / "plain") == plain
    folder, *_ = write_cifar(elsewhere, "cifar10")
    first = sources.identity("cifar10", elsewhere)
    read = []
    monkeypatch.setattr(files, "unpacked", lambda p, f=files.unpacked: read.append(p) or f(p))
    assert sources.identity("cifar10", elsewhere) == first and not read  # kept in the process
    batch = folder / "data_batch_2"
    batch.write_bytes(batch.read_bytes() + b"x")
    assert sources.identity("cifar10", elsewhere) != first and read == [batch]
    (elsewhere / "packed" / f"{files.IDX[0]}.gz").write_bytes(b"\x1f\x8b damaged")
    with pytest.raises(ValueError, match="cannot be read whole") as e:
        sources.identity("fashion_mnist", elsewhere / "packed")
    one_line(e)
    with pytest.raises(files.MissingData):
        sources.identity("cifar100", elsewhere)
    with pytest.raises(ValueError, match="unknown data set"):
        sources.identity("mine")


def test_identity_of_folders(tmp_path, monkeypatch):
    for part in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / part).mkdir(parents=True)
        for k in range(2):
            image = Image.fromarray(images(1, (9, 9), k)[0].numpy())
            image.save(tmp_path / part / f"{k}.JPEG")
    digest, how = sources.identity("imagenet", tmp_path)
    assert how == "contents"
    (tmp_path / "train" / "a" / ".hidden").write_bytes(b"x")
    assert sources.identity("imagenet", tmp_path) == (digest, how)
    stream = sources.load("imagenet", root=tmp_path, workers=0)
    before = stream.content_digest()
    monkeypatch.setattr(files, "MAX_HASHED_BYTES", 10)
    large = sources.identity("imagenet", tmp_path)
    assert large[1] == "names and sizes" and large[0] != digest
    path = tmp_path / "val" / "b" / "1.JPEG"
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(1, 1))
    assert sources.identity("imagenet", tmp_path) == large  # the contents do not count
    monkeypatch.setattr(files, "MAX_HASHED_BYTES", 10**9)
    assert sources.identity("imagenet", tmp_path)[0] not in (digest, large[0])
    again = sources.load("imagenet", root=tmp_path, workers=0)
    assert again.content_digest() != before == stream.content_digest()
