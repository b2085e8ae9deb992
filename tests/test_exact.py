"""A result depends on the run alone: not on what else draws, seeds, casts or switches beside it."""

import ast
import copy
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kdkit as kd
from kdkit import device, models
from kdkit.randomness import may_draw, own_draws, seed_of
from kdkit.study import plans, runs, store

ENGINE = [p for p in Path(kd.__file__).parent.rglob("*.py") if "study" not in p.parts]


class Drawing(nn.Module):
    """Somebody's own network, with layers and code that draw."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, 2, 1)
        self.norm, self.drop, self.fc = nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Linear(4, 3)

    def forward(self, x):
        h = F.relu(self.norm(self.conv(x))).mean((2, 3))
        noise = torch.randn(h.shape) if self.training else torch.zeros(h.shape)
        return self.fc(F.dropout(self.drop(h) + 0.1 * noise, 0.1, self.training))


@pytest.fixture(scope="module")
def data():
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(96) % 3
    x = torch.randint(150, (96, 1, 10, 10), generator=draw) + 30 * y[:, None, None, None]
    return kd.data.tensors(x[:64].byte(), y[:64], x[64:].byte(), y[64:])


def cases():
    """(method, students, teacher): each made anew, under draws of its own."""

    def nets(count):
        return [models.build("resnet8_w0.25", 1, 3) for _ in range(count)]

    yield lambda: (kd.Baseline(), Drawing(), None)
    yield lambda: (kd.KD(T=2.0), Drawing(), nets(1)[0])
    yield lambda: (kd.FitNet(), nets(1)[0], nets(1)[0])
    yield lambda: (kd.CRD(dim=8), nets(1)[0], nets(1)[0])
    yield lambda: (kd.OKDDip(m=3, attention="random"), models.Branches(nets(3)), None)
    yield lambda: (kd.DCKD(m=2), models.Peers([Drawing(), Drawing()]), nets(1)[0])


def weights(number, data, seed, threads=1):
    """All that a fit has trained, as bytes."""
    with own_draws(seed_of("networks", number)):
        method, students, teacher = list(cases())[number]()
    recipe = kd.Recipe(epochs=2, batch=16, lr=0.02, augment="crop_flip", threads=threads)
    fitted = kd.fit(method, students, data, teacher=teacher, recipe=recipe, seed=seed, device="cpu")
    state = [*students.state_dict().values(), *fitted.method.state_dict().values()]
    return b"".join(v.detach().numpy().tobytes() for v in state) + fitted.test_logits.tobytes()


def disturb(stop):
    """What a kernel's other threads may do, over and over."""
    acts = [
        lambda: torch.rand(7),
        lambda: torch.manual_seed(random.randrange(100)),
        lambda: torch.set_default_dtype(random.choice([torch.float64, torch.float32])),
        lambda: torch.set_num_threads(random.choice([1, 2])),
        lambda: np.random.seed(3),
        lambda: torch.set_grad_enabled(False),
    ]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        while not stop.is_set():
            random.choice(acts)()
            time.sleep(0.0005)


@contextmanager
def mischief(count=3):
    stop, before = threading.Event(), (torch.get_num_threads(), torch.get_rng_state())
    threads = [threading.Thread(target=disturb, args=(stop,)) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(before[0])
        torch.set_rng_state(before[1])


def test_24_concurrent_fits_equal_sequential_fits(data):
    numbers = [(n, seed) for seed in range(4) for n in range(len(list(cases())))]
    assert len(numbers) == 24
    alone = [weights(n, data, seed) for n, seed in numbers]

    def failing():
        class Broken(kd.Baseline):
            def terms(self, s, y, t, step):
                raise RuntimeError("broken")

        with own_draws(0):
            net = Drawing()
        with pytest.raises(RuntimeError, match="broken"):
            kd.fit(Broken(), net, data, recipe=kd.Recipe(epochs=1, batch=16, threads=2))

    def around(number, seed):
        """A fit inside other modes of its own thread."""
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            torch.manual_seed(seed + number)
            return weights(number, data, seed)

    with mischief(), ThreadPoolExecutor(6) as pool:
        broken = [pool.submit(failing) for _ in range(3)]
        together = list(pool.map(lambda pair: around(*pair), numbers))
        for job in broken:
            job.result()
    assert [a == b for a, b in zip(alone, together, strict=True)] == [True] * 24
    assert len(set(alone)) == 24  # of other seeds and methods


def test_concurrent_runs_equal_sequential_runs(tmp_path, monkeypatch):
    asked = [
        plans.preset("smoke", method=m, seed=s, n_train=100, batch=25, epochs=1)
        for m in ("kd", "fitnet", "okddip")
        for s in (0, 1)
    ]
    found = []
    for folder in ("one", "many"):
        monkeypatch.setenv("KDKIT_RUNS", str(tmp_path / folder))
        with ThreadPoolExecutor(1 if folder == "one" else 4) as pool:
            records = list(pool.map(runs.get, asked))
        found.append([r.meta["weights_sha256"] for r in records])
    assert found[0] == found[1]
    assert len(store.records()[0]) == len(asked) + 1  # and their teacher, once


def test_no_global_generator_is_read_or_set(data, monkeypatch):
    def forbidden(*args, **kw):
        raise AssertionError("a global generator")

    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for name in ("manual_seed", "seed", "set_rng_state"):
        monkeypatch.setattr(torch, name, forbidden)
        monkeypatch.setattr(torch.random, name, forbidden)
    monkeypatch.setattr(torch.random, "fork_rng", forbidden)
    for number in range(len(list(cases()))):
        weights(number, data, 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1]) and random.getstate() == before[2]


@pytest.mark.parametrize("path", ENGINE, ids=[p.stem for p in ENGINE])
def test_the_engine_names_generator_type_and_place(path):
    """In every call that draws, a generator; in every call that makes a tensor, dtype, device."""
    makes = {"empty", "zeros", "ones", "full", "rand", "randn", "eye", "tensor", "linspace"}
    makes |= {"arange", "randint", "randperm"}
    draws = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"}
    never = {"manual_seed", "fork_rng", "set_rng_state", "get_rng_state", "default_generator"}
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        of = node.func.value
        if not (isinstance(of, ast.Name) and of.id == "torch"):
            continue
        name, where = node.func.attr, f"{path.name}:{node.lineno}"
        given = {keyword.arg for keyword in node.keywords}
        assert name not in never, where
        if None not in given:  # else they come with **
            assert name not in draws or "generator" in given, where
            assert name not in makes or given >= {"dtype", "device"}, where


def test_every_operator_that_draws_has_a_generator_here():
    ones = torch.ones(4, 6)
    acts = {
        "rand": lambda: torch.rand(3),
        "randn": lambda: torch.randn(2, 2),
        "randint": lambda: torch.randint(2, 50, (4,)),
        "randperm": lambda: torch.randperm(9),
        "rand_like": lambda: torch.rand_like(ones),
        "randn_like": lambda: torch.randn_like(ones),
        "randint_like": lambda: torch.randint_like(ones, 70),
        "normal": lambda: torch.normal(ones, 1.0),
        "bernoulli": lambda: torch.bernoulli(ones / 2),
        "multinomial": lambda: torch.multinomial(ones, 3),
        "dropout": lambda: F.dropout(ones, 0.5),
        "alpha_dropout": lambda: F.alpha_dropout(ones, 0.5, True),
        "dropout2d": lambda: F.dropout2d(torch.ones(2, 9, 2, 2), 0.5),
        "rrelu": lambda: F.rrelu(-ones, training=True),
        "gumbel": lambda: F.gumbel_softmax(ones),
        "attention": lambda: F.scaled_dot_product_attention(*[ones[None]] * 3, dropout_p=0.5),
        "lstm": lambda: nn.LSTM(6, 6, 2, dropout=0.5)(ones[:, None])[0],
        "exponential": lambda: torch.empty(5).exponential_(),
        "orthogonal": lambda: nn.init.orthogonal_(torch.empty(3, 3)),
        "truncated": lambda: nn.init.trunc_normal_(torch.empty(9)),
        "distribution": lambda: torch.distributions.Beta(1.0, 1.0).sample((3,)),
    }
    before = torch.get_rng_state()
    for name, act in acts.items():
        with own_draws(1):
            first = act()
        with own_draws(1):
            again = act()
        with own_draws(2):
            other = act()
        assert torch.equal(first, again) and not torch.equal(first, other), name
        assert first.dtype in (torch.float32, torch.int64), name
    assert torch.equal(torch.get_rng_state(), before)


def test_what_may_draw():
    assert not may_draw(models.build("resnet8_w0.25", 1, 3))
    assert not may_draw(nn.Sequential(nn.Flatten(), nn.Linear(3, 3)))
    assert may_draw(models.build("vgg16_okddip", 3, 10)) and may_draw(Drawing())
    assert may_draw(nn.Sequential(nn.Dropout(0.1)))
    with pytest.raises(ValueError, match="compile=True: what may draw"):
        x = torch.zeros(8, 1, 10, 10, dtype=torch.uint8)
        some = kd.data.tensors(x, torch.arange(8) % 3, x, torch.arange(8) % 3)
        kd.fit(kd.Baseline(), Drawing(), some, recipe=kd.Recipe(batch=4, compile=True))


def test_the_number_of_threads_is_shared_and_put_back():
    before, order = torch.get_num_threads(), []

    def inside(name, threads, seconds):
        with device.use_threads(threads):
            order.append((name, torch.get_num_threads()))
            time.sleep(seconds)

    first = threading.Thread(target=inside, args=("one", 1, 0.3))
    first.start()
    time.sleep(0.1)
    others = [threading.Thread(target=inside, args=a) for a in (("two", 2, 0), ("too", 1, 0))]
    for thread in others:
        thread.start()
    for thread in (first, *others):
        thread.join()
    assert order == [("one", 1), ("too", 1), ("two", 2)]  # who needs another number has waited
    assert torch.get_num_threads() == before
    with device.use_threads(1), device.use_threads(1):
        with pytest.raises(ValueError, match="a fit inside another one has its 1 threads"):
            with device.use_threads(2):
                pass
    with pytest.raises(KeyError), device.use_threads(2):
        raise KeyError
    assert torch.get_num_threads() == before and not device._Shared.running


FORKED = """
import os, threading, time
from kdkit import device
from kdkit.study import fingerprint
from kdkit.study.figures import style

def busy():
    with device.use_threads(1), fingerprint._loading, style.LOCK:
        time.sleep(1)

threading.Thread(target=busy).start()
time.sleep(0.2)
child = os.fork()
with device.use_threads(2), fingerprint._loading, style.LOCK:
    pass
if child == 0:
    os._exit(7)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are POSIX's")
def test_a_process_forked_during_a_fit_does_not_wait_for_it():
    assert subprocess.run([sys.executable, "-c", FORKED], timeout=100).returncode == 7


def test_large_seeds_are_exact():
    big = 2**53
    ids = {plans.plan(plans.preset("smoke", seed=big + k)).id for k in range(3)}
    assert len(ids) == 3
    assert plans.preset("smoke", seed=str(big + 1)).seed == big + 1
    assert copy.deepcopy(plans.preset("smoke", seed="1e3")).seed == 1000
