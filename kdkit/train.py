"""The only training loop: `get(run)` returns a finished record, from the store or trained now.

Every draw of a run has its own generator, seeded by (seed, what, epoch, step): nothing else in a
kernel can disturb it, and a checkpoint needs no generator's state to go on bit-equally.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import machine, metrics, models, store
from .config import Run, lr_at, seed_of
from .data import Data, Folders, load
from .machine import Interrupted, cast, full, placed
from .methods import Method, Probe, Step, make, method_class, resolve, scales, source_digest
from .models import Out

EVAL_BATCH = 500
STATEFUL = ("students", "method", "optimizer")
SPARE = 60  # a checkpoint may cost 1/60 of the time since the last one


class NotFinite(ArithmeticError):
    """A loss term became infinite or not a number; nothing was stored as finished."""


@dataclass
class Job:
    """A run under way: everything the loop needs, and what a checkpoint keeps of it."""

    run: Run
    data: Data | Folders
    device: torch.device
    dtype: torch.dtype
    method: Method
    students: nn.Module
    teacher: Callable[[Tensor, Tensor], Out] | None  # (x, index) -> Out
    optimizer: torch.optim.Optimizer
    forward: Callable[[Tensor], Out]  # the students, perhaps compiled
    pool: Tensor | None = None  # positions to train on; None: all
    epoch: int = 0  # below 0 in the method's first stage
    step: int = 0  # of the epoch
    seconds: float = 0.0  # of earlier sessions
    resumed_at: int | None = None
    factors: Tensor | None = None  # of the terms, in this epoch
    sums: dict[str, Tensor] = field(default_factory=dict)  # of this epoch, on the device
    history: list[dict] = field(default_factory=list)
    arrays: dict[str, list] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    next_save: float = 0.0

    @property
    def steps(self) -> int:
        return len(self.data.y if self.pool is None else self.pool) // self.run.batch

    @property
    def elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.started


def _teacher(
    run: Run, method: Method, data, device, dtype
) -> tuple[Callable | None, nn.Module | None]:
    """The frozen teacher as (x, index) -> Out, and its network; its run is found in the store or
    trained first.

    Where nothing but logits is asked for and images are never changed, they are computed once.
    """
    its_run = method.teacher_run(run)
    if its_run is None:
        return None, None
    if store.find(its_run) is None:
        what = "training" if its_run.epochs else "testing"
        store.say(
            f"{run.method} needs a teacher: {what} {its_run.student} "
            f"({its_run.method}, seed {its_run.seed}) first"
        )
    net, logits_only = get(its_run).model(), method.teacher_logits_only
    net = machine.faster(net, data.shape) if logits_only else net
    forward = placed(net, device)

    def answer(x: Tensor, index: Tensor | None) -> Out:  # index None: a test image
        with torch.no_grad(), cast(device, dtype):
            o = full(forward(x))
        return o._replace(logits=o.logits.mean(0)) if o.logits.ndim == 3 else o  # an ensemble

    if not (logits_only and run.augment == "none" and isinstance(data, Data)):
        return answer, net
    chunks = torch.arange(len(data.y), device=device).split(EVAL_BATCH)
    known = torch.cat([answer(data.batch(i, "none", None), i).logits for i in chunks])  # (N, K)

    def recall(x: Tensor, index: Tensor | None) -> Out:
        return answer(x, index) if index is None else Out(known[index], (), (), ())

    return recall, net


def setup(run: Run) -> Job:
    """Data on the device, teacher, students and the method's own layers, from the run's seed."""
    device, dtype, _ = machine.chosen(run)
    data = load(run.data, device, run.n_train)
    method = make(run)
    teacher, its_net = _teacher(run, method, data, device, dtype)
    torch.manual_seed(seed_of(run.seed, "init"))
    net = store.students(run, data.shape, data.classes).eval()  # the probe changes no statistics
    if run.pretrained:
        for student in getattr(net, "nets", [net]):
            student.load_state_dict(models.pretrained(run.student, data.classes))
    index = torch.arange(2, device=device)
    x = data.batch(index, "none", torch.Generator())
    forward = placed(torch.compile(net) if run.compile else net, device)
    with torch.no_grad():
        t = teacher(x, index) if teacher else None
        method.build(Probe(full(forward(x)), t, data.classes, data.y, its_net))
    method.to(device)
    wanted = [*net.parameters(), *method.parameters()]
    optimizer = torch.optim.SGD(
        wanted,
        run.lr,
        run.momentum,
        weight_decay=run.weight_decay,
        nesterov=run.nesterov and run.momentum > 0,
        fused=True,
    )
    held = method.held_out(data.y)
    pool = None if held is None else torch.ones_like(data.y).index_fill_(0, held, 0).nonzero()[:, 0]
    job = Job(
        run,
        data,
        device,
        dtype,
        method,
        net,
        teacher,
        optimizer,
        forward,
        pool,
        -method.first_epochs(run.epochs),
    )
    if run.epochs and not job.steps:
        have = len(data.y if pool is None else pool)
        raise ValueError(f"batch={run.batch}: {run.data} has {have} training images here")
    return job


def train_step(job: Job, x: Tensor, y: Tensor, index: Tensor):
    """One optimiser step; returns (unweighted terms by name, students' logits). No sync here."""
    run = job.run
    draw = seed_of(run.seed, "step", job.epoch, job.step)
    torch.manual_seed(draw)  # dropout, if a network has any
    t = job.teacher(x, index) if job.teacher else None
    at = Step(index, job.epoch, run.epochs, torch.Generator().manual_seed(draw))
    job.method.watch()  # what an earlier step watched is not this one's
    if job.epoch < 0:
        z, terms = None, job.method.first_terms(t, y, at)
    else:
        if job.method.views and run.augment != "none":
            own = [
                torch.Generator().manual_seed(seed_of(draw, k))
                for k in range(1, job.method.peers())
            ]
            x = torch.stack([x, *(job.data.batch(index, run.augment, g) for g in own)])
        with cast(job.device, job.dtype):
            s = full(job.forward(x))
        z, terms = s.logits.detach(), job.method.terms(s, y, t, at)
    values = torch.stack(list(terms.values()))
    if job.factors is None:  # they hold for the epoch: no transfer in the step
        job.factors = torch.tensor(
            scales(job.method, terms, job.epoch, run.epochs), device=job.device
        )
    loss = values @ job.factors
    job.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    job.optimizer.step()
    return dict(zip(terms, values.detach(), strict=True)), z


def train_epoch(job: Job, stop: threading.Event, bar: tqdm) -> None:
    """The rest of the epoch from job.step on, checkpoints included; sums stay on the device."""
    run, job.factors = job.run, None
    for group in job.optimizer.param_groups:
        group["lr"] = lr_at(run, job.epoch) if job.epoch >= 0 else job.method.first_lr(run)
    if job.pool is not None and job.epoch > 0 and job.step == 0:
        held = job.method.held_out(job.data.y)
        x = {i: job.data.batch(i, "none", torch.Generator()) for i in held.split(EVAL_BATCH)}
        t = torch.cat([job.teacher(v, i).logits for i, v in x.items()]) if job.teacher else None
        job.method.refresh(answers(job, x.values()), job.data.y[held], t)
    job.students.train()
    job.method.train()
    order = torch.Generator().manual_seed(seed_of(run.seed, "data", job.epoch))
    for x, y, index in job.data.batches(True, run.batch, run.augment, order, job.step, job.pool):
        terms, z = train_step(job, x, y, index)
        seen = {f"term.{k}": v for k, v in terms.items()}
        if z is not None:  # (m,)
            seen["right"] = (z.reshape(-1, *z.shape[-2:]).argmax(-1) == y).float().mean(-1)
        seen |= {f"seen.{k}": v for k, v in getattr(job.method, "seen", {}).items()}
        for k, v in seen.items():
            if k.startswith("term."):  # the first step at which it was not finite, without a sync
                bad = torch.where(torch.isfinite(v), math.inf, float(job.step))
                name = f"bad.{k[5:]}"
                job.sums[name] = torch.minimum(job.sums[name], bad) if name in job.sums else bad
            job.sums[k] = job.sums[k] + v if k in job.sums else v.clone()
        job.step += 1
        bar.update()
        if stop.is_set() or time.monotonic() > job.next_save:
            save_checkpoint(job)
        if stop.is_set():
            raise Interrupted(
                f"stopped at epoch {job.epoch}, step {job.step}, and saved: run the "
                "same again and it goes on from there"
            )


def not_finite(job: Job, what: str, step: int) -> NotFinite:
    epoch = min(job.epoch, job.run.epochs - 1)
    return NotFinite(
        f"{job.method.title}: {what} not finite at epoch {epoch}, step {step}, with "
        f"learning rate {lr_at(job.run, epoch):g}; a smaller lr may help"
    )


def check_finite(job: Job) -> None:
    """Raises NotFinite if a term of this epoch was not; called before anything is written."""
    for key, first in job.sums.items():
        if key.startswith("bad.") and math.isfinite(first.item()):
            raise not_finite(job, f"the term {key[4:]!r} is", int(first))


@torch.no_grad()
def answers(job: Job, batches: Iterable[Tensor]) -> Tensor:
    """The students' logits for batches of images, in eval mode: (m, N, K) float32."""
    job.students.eval()
    parts = []
    for x in batches:
        with cast(job.device, job.dtype):
            z = job.forward(x).logits.float()
        parts.append(z.reshape(-1, *z.shape[-2:]))
    return torch.cat(parts, 1)


def predict(job: Job, subset: Tensor | None = None) -> np.ndarray:
    """The students' logits for the test images, or some of them: (m, N, K) float32.

    Raises NotFinite if they are not.
    """
    batches = job.data.batches(False, EVAL_BATCH, "none", None, subset=subset)
    z = answers(job, (x for x, _, _ in batches)).cpu().numpy()
    if not np.isfinite(z).all():
        raise not_finite(job, "the students' test logits are", job.step)
    return z


def end_epoch(job: Job) -> None:
    """Probe, history row, per-epoch arrays."""
    check_finite(job)
    if job.epoch < 0:  # of the first stage no row is kept
        job.epoch, job.step, job.sums = job.epoch + 1, 0, {}
        return
    run, m = job.run, job.method.peers()
    n, sums = job.step, {k: v.cpu() for k, v in job.sums.items()}
    probe = job.data.probe()
    z, y = predict(job, probe), job.data.y_test[probe].cpu().numpy()
    row = {
        "epoch": job.epoch,
        "lr": lr_at(run, job.epoch),
        "ramp": job.method.ramp(job.epoch, run.epochs),
        "terms": {k[5:]: float(v) / n for k, v in sums.items() if k.startswith("term.")},
        "train_top1": (100 * sums["right"] / n).tolist(),
        "probe_top1": (100 * metrics.top(z, y)).tolist(),
        "probe_ensemble": 100 * float(metrics.top(metrics.ensemble(z[:m]), y)),
        "diversity": metrics.diversity(z[:m]) if m > 1 else None,
        "seconds": round(job.elapsed, 2),
    }
    others = {round((k + 1) * run.epochs / (run.full_tests + 1)) for k in range(run.full_tests)}
    if job.epoch + 1 in others - {run.epochs}:  # `finish` reads it after the last
        row["test_top1"] = (100 * metrics.top(predict(job), job.data.y_test.cpu().numpy())).tolist()
    seen = {k[5:]: v.numpy() / n for k, v in sums.items() if k.startswith("seen.")}
    seen |= {"pair_distance": metrics.pair_distance(z), "probe_logits": store.half(z[:, :64])}
    for k, v in seen.items():
        job.arrays.setdefault(k, []).append(np.asarray(v))
    job.history.append(row)
    job.epoch, job.step, job.sums = job.epoch + 1, 0, {}


def signature(job: Job) -> list:
    """What a checkpoint must agree in with the code that goes on from it."""
    shapes = [
        [k, list(v.shape)]
        for part in (job.students, job.method)
        for k, v in part.state_dict().items()
    ]
    return [source_digest(type(job.method)), str(job.dtype), shapes]


def save_checkpoint(job: Job) -> None:
    """All that a bit-equal continuation needs; written whole, at most 1/SPARE of the time."""
    check_finite(job)
    began = time.monotonic()
    arrays = {k: torch.from_numpy(np.stack(v)) for k, v in job.arrays.items()}
    store.write_checkpoint(
        job.run,
        {
            "fits": signature(job),
            "epoch": job.epoch,
            "step": job.step,
            "seconds": job.elapsed,
            "history": job.history,
            "arrays": arrays,
            "sums": job.sums,
            **{k: getattr(job, k).state_dict() for k in STATEFUL},
        },
    )
    job.next_save = time.monotonic() + max(1.0, SPARE * (time.monotonic() - began))


def resume(job: Job) -> None:
    """Go on from the run's checkpoint, if it has one that fits this code and precision."""
    state = store.read_checkpoint(job.run)
    if state is None:
        return
    if state.get("fits") != signature(job):
        store.say("a checkpoint of other code or precision was found: training from the start")
        return
    for k in STATEFUL:
        getattr(job, k).load_state_dict(state[k])
    job.epoch = job.resumed_at = state["epoch"]
    job.step, job.seconds, job.history = state["step"], state["seconds"], state["history"]
    job.sums = {k: v.to(job.device) for k, v in state["sums"].items()}
    job.arrays = {k: list(v.cpu().numpy()) for k, v in state["arrays"].items()}


def finish(job: Job) -> store.Record:
    """Test once, at the last epoch, and store the run."""
    z, t = predict(job), None
    its_run = job.method.teacher_run(job.run)
    kept = get(its_run).test_logits if its_run else {}
    if its_run and "students_classes" not in kept:
        t = kept["students"].astype(np.float32).mean(0)  # several students: their ensemble
    elif its_run:  # the store kept only the largest logits
        parts = [
            job.teacher(x, None).logits
            for x, _, _ in job.data.batches(False, EVAL_BATCH, "none", None)
        ]
        t = torch.cat(parts).cpu().numpy()
    y, method = job.data.y_test.cpu().numpy(), job.method
    logits, z, t = store.packed(z, t, y)
    result = metrics.report(z, y, method.peers(), method.deployed(job.run.seed), t)
    if job.history:
        best = max(job.history, key=lambda row: np.mean(row["probe_top1"]))
        result["best_probe"] = {"epoch": best["epoch"], "top1": best["probe_top1"]}
    meta = {
        "method": job.method.title,
        "shape": list(job.data.shape),
        "classes": job.data.classes,
        "class_names": list(job.data.class_names),
        "teacher": its_run and store.run_id(its_run),
        "environment": machine.environment(job.device, job.dtype),
        "seconds": round(job.elapsed, 2),
        "resumed_at": job.resumed_at,
        "history": job.history,
        "result": result,
    }
    arrays = {k: np.stack(v) for k, v in job.arrays.items()}
    arrays["probe_index"] = job.data.probe()[:64].cpu().numpy()
    weights = {"students": job.students.state_dict(), "method": job.method.state_dict()}
    return store.save(job.run, meta, weights, {"history.npz": arrays, "test_logits.npz": logits})


def fit(run: Run, on_epoch: Callable[[Job], None] | None = None) -> store.Record:
    """Train a run from its checkpoint or its start and store it.

    on_epoch: called after each epoch. Raises Interrupted (saved), NotFinite, ValueError.
    """
    run = resolve(run)
    with machine.pinned(run), machine.stoppable() as stop:
        job = setup(run)
        resume(job)
        job.started, job.next_save = time.monotonic(), time.monotonic() + 1
        title = f"{job.method.title} seed {run.seed}"
        if job.resumed_at is not None:
            store.say(f"{title}: going on from epoch {job.epoch}, step {job.step}")
        first = job.method.first_epochs(run.epochs)
        with tqdm(
            total=(first + run.epochs) * job.steps,
            desc=title,
            unit="step",
            initial=(first + job.epoch) * job.steps + job.step,
            disable=store.quiet(),
            leave=False,
        ) as bar:
            while job.epoch < run.epochs:
                train_epoch(job, stop, bar)
                end_epoch(job)
                if not job.history:  # the first stage
                    continue
                row = job.history[-1]
                bar.set_postfix(
                    loss=f"{sum(row['terms'].values()):.2f}",
                    top1=f"{np.mean(row['probe_top1']):.1f}",
                )
                store.write_progress(run, job.history)
                if on_epoch:
                    on_epoch(job)
        record = finish(job)
        if stop.is_set():  # too late to stop this run, but not what would come after it
            raise Interrupted(f"stopped; {title} had just finished and is stored")
        return record


def get(
    run: Run, fresh: bool = False, on_epoch: Callable[[Job], None] | None = None
) -> store.Record:
    """The finished record of `run`: from the store where it is there, else trained now.

    fresh: train again and replace the stored one. Two processes that ask for one run: one
    trains, the other waits.
    """
    run = resolve(run)
    record = None if fresh else store.find(run)
    if record is None:
        with store.lock(run):
            record = store.find(run, mend=True)  # another process may have finished it
            if record is None or fresh:
                return fit(run, on_epoch)
    if record.meta["code"] != source_digest(method_class(run.method)):
        store.say(
            f"{run.method} (run {record.id}) was trained with other code of its class; "
            "fresh=True trains it again"
        )
    return record
