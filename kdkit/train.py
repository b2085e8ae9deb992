"""The training loop: objects in, trained students out.

    students = kd.models.Peers([net() for _ in range(3)])
    fitted = kd.fit(kd.DCKD(m=3), students, data, teacher=big, recipe=kd.Recipe(epochs=20))
    fitted.students, fitted.result, fitted.history

Nothing here knows a run's name, a store, a notebook or a file. Every draw has a generator of its
own, seeded by (seed, purpose, epoch, step), so that a run can go on from any step bit-equally.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from . import metrics
from .callbacks import Callback, Finite, History, not_finite
from .data import Data, Stream
from .device import (
    PRECISION,
    autocast,
    choose_device,
    choose_precision,
    fold_if_equal,
    forward_on,
    plain_modes,
    processor,
    to_float32,
    use_threads,
)
from .methods import Method, Probe, Step, term_weights
from .models import Branches, Out, Peers, as_out
from .randomness import may_draw, own_draws, seed_of
from .recipe import Recipe, learning_rate, make_optimizer, schedule_factor

EVAL_BATCH = 500


@dataclass
class State:
    """A training under way: what callbacks see, and all that a checkpoint has to keep."""

    method: Method
    students: nn.Module
    data: Data
    teacher: Callable[[Tensor, Tensor | None], Out] | None  # (x, index); index None: a test image
    recipe: Recipe
    seed: int
    device: torch.device
    dtype: torch.dtype
    forward: Callable[[Tensor], Out]  # the students, perhaps compiled
    optimizer: torch.optim.Optimizer
    class_weights: Tensor | None = None  # (K,)
    positions: Tensor | None = None  # of the images to train on; None: all
    may_draw: bool = False  # may networks, method or teacher draw, not only from `Step.generator`?
    callbacks: list[Callback] = field(default_factory=list)
    epoch: int = 0  # negative in the method's pretraining stage
    step: int = 0  # steps of the epoch that are done
    terms: dict[str, Tensor] = field(default_factory=dict)  # of the last step, unweighted
    logits: Tensor | None = None  # (m, B, K) of the last step; None in the pretraining stage
    y: Tensor | None = None  # (B,) of the last step

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        images = self.data.y if self.positions is None else self.positions
        return len(images) // self.recipe.batch

    @property
    def history(self) -> list[dict]:
        """One row for each finished epoch (`callbacks.History`)."""
        return next((c.rows for c in self.callbacks if isinstance(c, History)), [])

    def learning_rate(self) -> float:
        """The recipe's learning rate in this epoch."""
        return learning_rate(self.recipe, min(self.epoch, self.recipe.epochs - 1))

    def test_logits(self, subset: Tensor | None = None) -> np.ndarray:
        """The students' logits for the test images, or those at `subset`: (m, N, K) float32.

        Raises NotFinite if any logit is not finite.
        """
        batches = self.data.batches(False, EVAL_BATCH, "none", None, subset=subset)
        z = self.eval_logits(x for x, _, _ in batches).cpu().numpy()
        if not np.isfinite(z).all():
            raise not_finite(self, "the students' test logits are", self.step)
        return z

    def eval_logits(self, batches: Iterable[Tensor]) -> Tensor:
        """The students' logits for batches of images, in eval mode: (m, N, K) float32."""
        self.students.eval()
        with drawing(self.may_draw, self.seed, "test"):
            return eval_logits(self.forward, batches, self.device, self.dtype)


@dataclass
class Fitted:
    """What `fit` returns."""

    students: nn.Module  # the object that was given, trained, in eval mode
    result: dict  # of `metrics.report`: accuracies in percent, last epoch, all test images
    history: list[dict]  # one row per epoch
    arrays: dict[str, np.ndarray]  # for each epoch: pair_distance, probe_logits, what was watched
    test_logits: np.ndarray  # (m, N, K) float32
    teacher_logits: np.ndarray | None  # (N, K) float32
    method: Method  # with its layers, trained
    seconds: float
    environment: dict  # torch, device, processor, threads and precision that were in force


def fit(
    method: Method,
    students: nn.Module,
    data: Data,
    *,
    teacher: nn.Module | Callable | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    callbacks: Iterable[Callback] = (),
) -> Fitted:
    """Train `students`, the very object that is given, with `method` on `data`.

    students: one network, `models.Peers` or `models.Branches`, as the method asks; any module that
    gives logits (B, K), or `models.Out` where the method needs features.
    teacher: a module, or a callable (x, index) -> logits or Out; x (B, C, H, W) normalised images,
    index (B,) their positions in the training set, None for test images. It is put in eval mode and
    never trained. An ensemble answers with logits (m, B, K): their mean is taken.
    recipe: by default `Recipe()` with batches that the data can fill.
    seed: of the order of the images, their augmentation, dropout, the layers that the method adds
    and every other draw: whatever else draws in the process changes nothing, and is not changed.
    device: "auto", or a torch device.  callbacks: see `callbacks.Callback`.

    Raises ValueError where the parts do not fit one another, NotFinite where training diverges.
    """
    for what, given, kind in (
        ("method", method, Method),
        ("students", students, nn.Module),
        ("data", data, Data),
        ("recipe", recipe or Recipe(), Recipe),
        ("seed", seed, int),
    ):
        if not isinstance(given, kind):
            raise ValueError(f"{what}={given!r}: must be a {kind.__name__}, not {type(given)}")
    if recipe is None:
        recipe = Recipe().replace(batch=max(1, min(Recipe.batch, len(data.y))))
    device = choose_device(device)
    with use_threads(recipe.threads), plain_modes(device):
        state = prepare(method, students, data, teacher, recipe, seed, device)
        history = History()
        state.callbacks = [Finite(), history, *callbacks]
        try:
            call(state, "start")
            while state.epoch < recipe.epochs:
                train_epoch(state)
                call(state, "epoch")
                state.epoch, state.step = state.epoch + 1, 0
            z, t = state.test_logits(), teacher_test_logits(state, teacher)
        finally:
            call(state, "end")
            if isinstance(students, Branches):
                students.at_split = None
        environment = {
            "torch": torch.__version__,
            "device": state.device.type,
            "processor": processor(state.device),
            "threads": torch.get_num_threads(),
            "precision": PRECISION[state.dtype],
        }
    y = data.y_test.cpu().numpy()
    return Fitted(
        students,
        metrics.report(z, y, method.peers(), method.deployed(seed), t),
        history.rows,
        {name: np.stack(values) for name, values in history.arrays.items()},
        z,
        t,
        method,
        history.elapsed(),
        environment,
    )


def drawing(may_draw: bool, *keys) -> AbstractContextManager:
    """The draws of one purpose, from a generator of their own, where there may be any."""
    return own_draws(seed_of(*keys)) if may_draw else nullcontext()


def call(state: State, what: str) -> None:
    """Call every callback that has a method `what`."""
    for callback in state.callbacks:
        if hasattr(callback, what):
            getattr(callback, what)(state)


def prepare(method, students, data, teacher, recipe, seed, device) -> State:
    """`assemble`, and the images to train on. ValueError where they fill no batch."""
    state = assemble(method, students, data, teacher, recipe, seed, device)
    state.positions = training_positions(method, state.data, recipe)
    return state


def training_positions(method: Method, data: Data, recipe: Recipe) -> Tensor | None:
    """Positions of the images to train on; None: all. ValueError where they fill no batch."""
    held_out, positions = method.held_out(data.y), None
    if held_out is not None:
        positions = torch.ones_like(data.y).index_fill_(0, held_out, 0).nonzero()[:, 0]
    have = len(data.y if positions is None else positions)
    if recipe.epochs and have < recipe.batch:
        raise ValueError(f"batch={recipe.batch}: {data.name} has {have} training images here")
    return positions


def assemble(method, students, data, teacher, recipe, seed, device) -> State:
    """Everything on its device, the method's layers made from a probe batch of two images."""
    check_group(method, students)
    device = choose_device(device)
    dtype, _ = choose_precision(recipe.precision, device)
    data = data.to(device)
    parts = [method, *(part for part in (students, teacher) if isinstance(part, nn.Module))]
    uses_global_rng = any(map(may_draw, parts)) or callable(teacher) and len(parts) < 3
    if recipe.compile and uses_global_rng:
        raise ValueError(
            "compile=True: what may draw in its forward pass, such as dropout or code that is not "
            "kdkit's, is not compiled, since its draws would not be the seed's"
        )
    if isinstance(students, Branches):
        students.at_split = method.at_split
    students.eval()  # so that the probe does not update batch norm's statistics
    net, size = torch.compile(students) if recipe.compile else students, max(data.shape[1:])
    forward = forward_on(net, device, dtype, size)
    index = torch.arange(min(2, len(data.y)), dtype=torch.int64, device=device)
    x = data.batch(index, "none", torch.Generator())
    with torch.no_grad(), drawing(uses_global_rng, seed, "probe"):
        try:
            who = "teacher"
            run_teacher = teacher_function(teacher, method, data, recipe, device, dtype)
            t = run_teacher(x, index) if run_teacher else None
            who = "student"
            s = to_float32(as_out(forward(x)))
        except (RuntimeError, TypeError) as e:
            why = " ".join(str(e).split())
            shape = tuple(x.shape[1:])
            raise ValueError(f"the {who} does not take {data.name}'s images {shape}: {why}") from e
        check_outputs(method, s, t, data)
        net = teacher if isinstance(teacher, nn.Module) else None
    with torch.no_grad(), own_draws(seed_of(seed, "layers")):
        method.build(Probe(s, t, data.classes, data.y, net))
    method.to(device, torch.float64 if dtype == torch.float64 else None)
    optimizer = make_optimizer(recipe, [*students.parameters(), *method.parameters()])
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    state = State(
        method, students, data, run_teacher, recipe, seed, device, dtype, forward, optimizer
    )
    state.may_draw = uses_global_rng
    state.epoch = -method.pretrain_epochs(recipe.epochs)
    if recipe.class_weights:
        if len(recipe.class_weights) != data.classes:
            raise ValueError(
                f"class_weights: {len(recipe.class_weights)} weights, {data.name} has "
                f"{data.classes} classes"
            )
        weights = torch.tensor(recipe.class_weights, dtype=torch.float32, device=device)
        state.class_weights = weights.to(torch.float64) if dtype == torch.float64 else weights
    return state


def check_group(method: Method, students: nn.Module) -> None:
    """ValueError unless `students` are as many, and of the kind, that the method trains."""
    kind, m = method.group()
    kinds = {"single": "a single network", "network": "models.Peers", "branch": "models.Branches"}
    of = {Peers: "network", Branches: "branch"}
    seen = next((of[c] for c in of if isinstance(students, c)), "single")
    n = 1 if seen == "single" else len(students.nets)
    if (seen, n) != (kind, m):
        many = "" if kind == "single" else f" of {m}"
        have = type(students).__name__ + ("" if seen == "single" else f" of {n}")
        raise ValueError(f"{method.title} trains {kinds[kind]}{many}, not {have}: {method!r}")


def check_outputs(method: Method, s: Out, t: Out | None, data) -> None:
    """ValueError, in one line, for what a network lacks that the method needs."""
    if method.needs_teacher and t is None:
        raise ValueError(f"{method.title} needs a teacher: give fit(..., teacher=module)")
    words = {"feats": "feature maps", "preacts": "maps before the ReLU", "pooled": "pooled feature"}
    for who, out, needs in (
        ("student", s, method.student_needs),
        ("teacher", t, method.teacher_needs if method.needs_teacher else ()),
    ):
        for name in needs:
            value = getattr(out, name)
            parts = value if isinstance(value, tuple) else (value,)
            if not parts or any(
                part is None or isinstance(part, tuple) and not part for part in parts
            ):
                raise ValueError(
                    f"{method.title} needs the {who}'s {words[name]}, this network gives none: "
                    "kd.models.wrap(module, features=[...]) supplies them"
                )
        if out is not None and out.logits.shape[-1] != data.classes:
            raise ValueError(
                f"the {who} gives {out.logits.shape[-1]} logits, {data.name} has "
                f"{data.classes} classes"
            )


def teacher_function(teacher, method, data, recipe, device, dtype) -> Callable | None:
    """The teacher as (x, index) -> Out, in eval mode and without gradient.

    Where nothing but logits is asked for, batch norms are folded into convolutions; where images
    are never changed either, the logits are computed once.
    """
    if teacher is None:
        return None
    logits_only = not method.teacher_needs and isinstance(teacher, nn.Module)
    if isinstance(teacher, nn.Module):
        net = teacher.eval()
        net = fold_if_equal(net, data.shape) if logits_only else net
        forward = forward_on(net, device, dtype, max(data.shape[1:]))
    else:
        forward = None

    def run_teacher(x: Tensor, index: Tensor | None) -> Out:
        with torch.no_grad(), autocast(device, dtype):
            result = forward(x) if forward else teacher(x, index)
        if isinstance(result, Tensor) and result.ndim == 3:
            return as_out(result.float().mean(0))
        out = to_float32(as_out(result))
        return out._replace(logits=out.logits.mean(0)) if out.logits.ndim == 3 else out

    if not (logits_only and recipe.augment == "none" and not isinstance(data, Stream)):
        return run_teacher
    chunks = torch.arange(len(data.y), dtype=torch.int64, device=device).split(EVAL_BATCH)
    cached = torch.cat([run_teacher(data.batch(i, "none", None), i).logits for i in chunks])

    def lookup(x: Tensor, index: Tensor | None) -> Out:
        return run_teacher(x, index) if index is None else Out(cached[index], (), (), ())

    return lookup


def train_epoch(state: State) -> None:
    """The rest of the epoch from state.step on."""
    method, recipe = state.method, state.recipe
    if state.positions is not None and state.epoch > 0 and state.step == 0:
        refresh(state)
    for group in state.optimizer.param_groups:
        if state.epoch < 0:
            group["lr"] = method.pretrain_rate(recipe.lr)
        else:
            group["lr"] = group["initial_lr"] * schedule_factor(recipe, state.epoch)
    state.students.train()
    method.train()
    order = torch.Generator().manual_seed(seed_of(state.seed, "data", state.epoch))
    weights = None  # of the terms: they hold for the epoch, so no step waits for a transfer
    for x, y, index in state.data.batches(
        True, recipe.batch, recipe.augment, order, state.step, state.positions
    ):
        terms = forward_terms(state, x, y, index)
        if weights is None:
            factors = term_weights(method, terms, state.epoch, recipe.epochs)
            weights = torch.tensor(factors, dtype=torch.float32, device=state.device)
        values = torch.stack(list(terms.values()))
        loss = values @ weights.to(values.dtype)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.optimizer.step()
        state.terms, state.y = dict(zip(terms, values.detach(), strict=True)), y
        state.step += 1
        call(state, "step")


def forward_terms(state: State, x: Tensor, y: Tensor, index: Tensor) -> dict[str, Tensor]:
    """The method's unweighted terms for one batch."""
    with drawing(state.may_draw, state.seed, "dropout", state.epoch, state.step):
        return _terms(state, x, y, index)


def _terms(state: State, x: Tensor, y: Tensor, index: Tensor) -> dict[str, Tensor]:
    method, recipe = state.method, state.recipe
    seed = seed_of(state.seed, "step", state.epoch, state.step)
    t = state.teacher(x, index) if state.teacher else None
    generator = torch.Generator().manual_seed(seed)
    step = Step(index, state.epoch, recipe.epochs, generator, state.class_weights)
    method.watch()  # forgets what the last step watched
    if state.epoch < 0:
        state.logits = None
        return method.pretrain_terms(t, y, step)
    if method.views and recipe.augment != "none":  # an augmentation for each student
        seeds = [seed_of(seed, k) for k in range(1, method.peers())]
        own = [torch.Generator().manual_seed(s) for s in seeds]
        x = torch.stack([x, *(state.data.batch(index, recipe.augment, g) for g in own)])
    with autocast(state.device, state.dtype):
        s = to_float32(as_out(state.forward(x)))
    z = s.logits.detach()
    state.logits = z.reshape(-1, *z.shape[-2:])  # (m, B, K)
    return method.terms(s, y, t, step)


def refresh(state: State) -> None:
    """Show the students' and the teacher's logits on held-out images to the method."""
    data, held_out = state.data, state.method.held_out(state.data.y)
    x = {
        index: data.batch(index, "none", torch.Generator()) for index in held_out.split(EVAL_BATCH)
    }
    t = None
    if state.teacher:
        with drawing(state.may_draw, state.seed, "held out", state.epoch):
            t = torch.cat([state.teacher(images, index).logits for index, images in x.items()])
    state.method.refresh(state.eval_logits(x.values()), data.y[held_out], t)


@torch.no_grad()
def eval_logits(forward, batches: Iterable[Tensor], device, dtype) -> Tensor:
    """The logits of a network (m = 1) or group for batches of images: (m, N, K) float32."""
    parts = []
    for x in batches:
        with autocast(device, dtype):
            z = as_out(forward(x)).logits.float()
        parts.append(z.reshape(-1, *z.shape[-2:]))
    return torch.cat(parts, 1)


def evaluate(network: nn.Module, data: Data, device: str | torch.device = "auto") -> dict:
    """Accuracy and more of a network or group on all test images (`metrics.report`).

    network: any module that `fit` trains; it is moved to the device and put in eval mode.
    """
    device = choose_device(device)
    data, size = data.to(device), max(data.shape[1:])
    forward = forward_on(network.eval(), device, torch.float32, size)
    batches = (x for x, _, _ in data.batches(False, EVAL_BATCH, "none", None))
    with plain_modes(device), drawing(may_draw(network), 0, "test"):
        z = eval_logits(forward, batches, device, torch.float32).cpu().numpy()
    return metrics.report(z, data.y_test.cpu().numpy(), len(z), None, None)


def teacher_test_logits(state: State, teacher) -> np.ndarray | None:
    """The teacher's logits (N, K) for the test images; a teacher may bring them along."""
    if state.teacher is None:
        return None
    if getattr(teacher, "test_logits", None) is not None:
        return teacher.test_logits
    batches = state.data.batches(False, EVAL_BATCH, "none", None)
    with drawing(state.may_draw, state.seed, "test"):
        parts = [state.teacher(x, None).logits for x, _, _ in batches]
    return torch.cat(parts).float().cpu().numpy()
