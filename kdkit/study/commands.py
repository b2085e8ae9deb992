"""What each command of the command line does with its options, which `cli.py` reads."""

import argparse
import json
import platform
import shutil
import sys
import time
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path

import torch

from .. import data, models
from ..device import choose_device, choose_precision, processor
from ..fields import choose, fields
from ..methods import list_methods, method_class
from ..metrics import list_metrics
from . import files, handout, leftovers, pack, project, runs, sources, store, sweep
from .plans import PRESETS, Plan, Run, label, plan, preset, run_from
from .pretrained import pretrained
from .store import Record

INSTALL = "`pip install '.[{extra}]'` in the project's folder, or 'FILE.whl[{extra}]',"
CHROMIUM = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")


def settings(
    items: list[str], known: list[str], what: str, option: str = "--set"
) -> dict[str, str]:
    """What `--set field=value` asks for; `known`: the fields there are."""
    changes = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"{option} {item!r}: write field=value")
        if choose(name, known, what) in changes:
            raise ValueError(f"{option} {name} is given twice: {changes[name]} and {value}")
        changes[name] = value
    return changes


def run_of(args: argparse.Namespace, method: str, seed: int | None = None) -> Plan:
    """The run that the options ask for, checked as far as that goes without its data."""
    cls = method_class(choose(method, list_methods(), "method"))
    names = set(fields(Run)) - {"method", "preset", "params"}
    options = ("data", "student", "teacher", "seed")
    changes = {k: getattr(args, k) for k in options if getattr(args, k, None) is not None}
    own = settings(args.set, [*sorted(names), *fields(cls)], f"field of {method}")
    if twice := changes.keys() & own.keys():
        name = sorted(twice)[0]
        raise ValueError(
            f"{name} is given twice: --{name} {changes[name]}, --set {name}={own[name]}"
        )
    changes |= own
    for name in args.teacher.split(",") if args.teacher else ():
        models.builder_of(name.strip())
    if seed is not None and "seed" in own:
        raise ValueError(f"--set seed={own['seed']}: a sweep's seeds are those of --seeds")
    given = {} if seed is None else {"seed": seed}
    return plan(preset(args.preset, **{**given, **changes, "method": method}))


def summary(record: Record, planned: Plan, from_store: bool) -> dict:
    """What `train --json` prints. Accuracies in percent, seconds of training."""
    result, meta = record.result, record.meta
    shown = {
        "id": record.id,
        "method": record.run.method,
        "preset": planned.run.preset,
        "seed": record.run.seed,
        "epochs": record.run.epochs,
        "threads": meta["environment"]["threads"],
        "precision": meta["environment"]["precision"],
    }
    numbers = ("top1", "top1_deployed", "ensemble", "diversity", "correlation_number")
    shown |= {name: result[name] for name in numbers}
    return shown | {
        "seconds": meta["seconds"],
        "from_store": from_store,
        "resumed_at": meta["resumed_at"],
        "record": str(record.path),
        "weights_sha256": meta["weights_sha256"],
    }


def cmd_train(args) -> int:
    """train one run, or find it in the store"""
    with redirect_stdout(sys.stderr):  # a user's module may print
        sweep.load_module(args.module)
        run = run_of(args, args.method)
        from_store = not args.fresh and store.find(run) is not None
        record = runs.get(run, args.fresh)
    shown = summary(record, run, from_store)
    if args.json:
        print(json.dumps(shown))
        return 0
    accuracy = " ".join(f"{v:.2f}" for v in shown["top1"])
    print(
        f"{label(run)}, seed {shown['seed']}: top-1 {accuracy} % in "
        f"{shown['seconds']:.0f} s; {'from the store: ' if from_store else ''}{record.path}"
    )
    return 0


def cmd_sweep(args) -> int:
    """train many runs side by side"""
    sweep.load_module(args.module)
    wanted = [
        run_of(args, m, seed) for m in args.methods or list_methods() for seed in range(args.seeds)
    ]
    return report(sweep.sweep(wanted, args.workers, args.module), f"{len(wanted)} runs are stored")


def cmd_figures(args) -> int:
    """train what the figures need, execute the notebooks and draw"""
    from . import notebooks  # here: the other commands need no notebooks and no pandas
    from .figures import figures_root

    choose(args.preset, PRESETS, "preset")
    sweep.load_module(args.module)
    failed = notebooks.figures(args.only, args.preset, args.seeds, args.workers, args.module)
    return report(failed, f"the figures are in {figures_root()}")


def changed(args) -> dict[str, str]:
    """What `--set` changes in the recipe of the cells that `args.which` names."""
    from .papers import cells

    fixed = ("method", "preset", "params", "seed", "student", "teacher", "pretrained")
    free = [name for name in fields(Run) if not name.startswith(fixed)]
    own = {f for name in cells(args.which)["method"] for f in fields(method_class(name))}
    changes = settings(args.set, [*free, *sorted(own)], "field")
    choose(changes.get("data", "lesson"), data.list_datasets(), "data set")
    return changes


def cmd_table(args) -> int:
    """print a table of the papers: published, ours and the difference"""
    from .papers.runs import compare, text

    changes = changed(args)
    compared = compare(args.which, **changes)
    if args.json:
        print(json.dumps(compared))
        return 0
    for (paper, table), part in groupby(compared, key=lambda c: (c["paper"], c["table"])):
        part = list(part)
        if args.which is None:
            done = sum(c["records"] > 0 for c in part)
            print(f"{f'{paper}:{table}':12} {len(part):3} cells, {done} of them run here")
        else:
            print(text(part, **changes), end="\n\n")
    return 0


def cmd_reproduce(args) -> int:
    """train what cells of the papers' tables need, teachers first"""
    from .papers import cells
    from .papers.runs import runs_of

    changes = changed(args)
    wanted = [
        run
        for row in cells(args.which).itertuples()
        for group in runs_of(row, args.seeds, **changes)
        for run in group
    ]
    jobs = sweep.missing(wanted).values()
    needed = [plan(run_from(job.payload["run"])) for job in jobs]
    names = [f"{p.method.title} ({p.run.student}, {p.run.data}, seed {p.run.seed})" for p in needed]
    if lack := lacking([p.run for p in needed]):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(
            f"{args.which} needs {', '.join(names[:3])}{more}; what is missing: {'; '.join(lack)}"
        )
    for name in names:
        print(f"to train: {name}")
    failed = sweep.sweep(wanted, args.workers)
    cmd_table(args)
    return report(failed, "everything that these cells need is stored")


def lacking(needed: list[Run]) -> list[str]:
    """What this machine has not of the runs' data and, if that is all there, their weights."""
    sets, weights = {r.data for r in needed}, {r.student for r in needed if r.pretrained}
    sets &= set(sources.SETS)  # others are not read from files that kdkit knows
    lack = []
    for names, find in (
        (sets, sources.place_of),
        (weights, pretrained),
    ):
        for name in sorted(names) if not lack else ():
            try:
                find(name)
            except ValueError as e:
                lack.append(str(e))
    return lack


def report(failed: dict[str, str], done: str) -> int:
    """Say what failed, or what is done; the exit code."""
    for title, why in failed.items():
        store.say(f"failed: {title}: {why}")
    if not failed:
        print(done)
    return int(bool(failed))


def cmd_data(args) -> int:
    """fetch a data set"""
    try:
        print(sources.download(args.name, args.root))
    except RuntimeError as e:  # torchvision's word for a transfer that came damaged
        raise OSError(e) from e
    return 0


def cmd_runs(args) -> int:
    """list the runs in the store, or in all stores"""
    sweep.load_module(args.module)
    done, under_way, damaged = store.records()
    stores = store.stores()
    rows = [
        {
            "id": r.id,
            "method": r.run.method,
            "label": known_label(r),
            "preset": r.run.preset,
            "seed": r.run.seed,
            "epochs": r.run.epochs,
            "top1": f"{r.result['top1_deployed']:.2f}",
            "seconds": round(r.meta["seconds"]),
            "finished": time.strftime("%Y-%m-%d %H:%M", time.localtime(r.meta["created"])),
            **({"store": r.path.parent} if len(stores) > 1 else {}),
        }
        for r in done
    ]
    print(columns(rows) if rows else f"no runs in {', '.join(map(str, stores))}")
    for path in under_way:
        print(f"{path.name} is not finished")
    for path in damaged:
        print(f"{path.name} is damaged: it is set aside and trained again when it is asked for")
    return 0


def known_label(record: Record) -> str:
    """A run's label; its method's title where that, or its data, is a user's not loaded now."""
    try:
        return label(record.run)
    except ValueError:
        return record.meta["method"]


def columns(rows: list[dict]) -> str:
    """Rows as text, one below the other, under their names."""
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


def cmd_lab(args) -> int:
    """put the walk into a folder and open JupyterLab there"""
    folder = args.folder.expanduser().absolute()
    print(handout.told(folder, handout.lay(folder)), flush=True)
    if not args.only_copy:
        handout.open_lab(folder, browser=not args.no_browser)
    return 0


def cmd_pack(args) -> int:
    """write finished runs, and the teachers that they need, into one file"""
    sweep.load_module(args.module)
    known = {*fields(Run), *(name for m in list_methods() for name in fields(method_class(m)))}
    where = settings(args.where, sorted(known - {"params"}), "field", "--where")
    records = pack.chosen(args.ids, where)
    pack.pack(args.file, records)
    print(f"{len(records)} runs are in {args.file} ({args.file.stat().st_size / 1e6:.1f} MB)")
    return 0


def cmd_unpack(args) -> int:
    """check a file that `pack` wrote and put its runs into the store"""
    done, there = pack.unpack(args.file)
    print(f"{len(done)} runs are new in {store.root()}, {len(there)} were there")
    return 0


def cmd_gc(args) -> int:
    """clear leftovers out of the store"""
    found = leftovers.find()
    for path, why in found:
        print(f"{path}: {why}")
    if not found:
        print(f"nothing to clear in {store.root()}")
    elif not args.yes and not sys.stdin.isatty():
        print("cleared nothing: there is no terminal to ask; --yes clears")
    elif args.yes or input(f"clear these {len(found)}? [y/N] ").strip().lower() in ("y", "yes"):
        for path, _ in found:
            leftovers.clear(path)
        print(f"cleared {len(found)}")
    else:
        print("cleared nothing")
    return 0


def cmd_list(args) -> int:
    """print names, one a line"""
    sweep.load_module(args.module)
    known = {
        "methods": list_methods,
        "models": models.list_models,
        "datasets": data.list_datasets,
        "metrics": list_metrics,
        "figures": list_figures,
    }
    print("\n".join(known[choose(args.what, known, "list")]()))
    return 0


def list_figures() -> list[str]:
    """Names of the figures; they need the extra "study"."""
    from .figures import list_figures

    return list_figures()


def cmd_doctor(args) -> int:
    """tell what this machine has and what kdkit makes of it"""
    device = choose_device()
    dtype, why = choose_precision("auto", device)
    done, under_way, damaged = store.records()
    own = sum(record.path.parent == store.root() for record in done)
    facts = {
        "kdkit": str(Path(__file__).parents[1]),
        "python": f"{platform.python_version()}, {sys.executable}",
    }
    for name in ("torch", "torchvision", "jupyterlab", "papermill"):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = f"not installed; {INSTALL.format(extra='study')} brings it"
    facts |= {
        "device": f"{device.type}, {processor(device)}",
        "precision": f"{str(dtype).removeprefix('torch.')} where a run says auto: {why}",
        "threads": f"{torch.get_num_threads()} of torch, {sweep.cores()} core(s) for sweep",
    }
    for name in sources.SETS:
        try:
            facts[f"data {name}"] = str(sources.place_of(name))
        except files.MissingData:
            facts[f"data {name}"] = f"not here; `python -m kdkit data {name}` tells how to get it"
    facts["store"] = (
        f"{store.root()}: {own} finished, {len(under_way)} under way, "
        f"{len(damaged)} damaged, {len(leftovers.find())} leftovers (gc clears)"
    )
    for number, path in enumerate(store.stores()[1:], 2):
        found = sum(record.path.parent == path for record in done)
        facts[f"store {number}"] = f"{path}: {found} more, read alone"
    facts["figures"] = str(project.place("KDKIT_FIGURES", "figures/local"))
    facts["browser"] = next(
        filter(None, map(shutil.which, CHROMIUM)), "no Chromium: the widgets' tests cannot run here"
    )
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {value}")
    return 0


COMMANDS = {
    "train": cmd_train,
    "sweep": cmd_sweep,
    "figures": cmd_figures,
    "table": cmd_table,
    "reproduce": cmd_reproduce,
    "lab": cmd_lab,
    "data": cmd_data,
    "runs": cmd_runs,
    "pack": cmd_pack,
    "unpack": cmd_unpack,
    "gc": cmd_gc,
    "list": cmd_list,
    "doctor": cmd_doctor,
}
