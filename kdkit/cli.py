"""The command line: `python -m kdkit train | sweep | figures | table | reproduce | data | runs |
gc | list | doctor`.

Exit codes: 0 done; 1 something failed; 2 wrong name, field, value or missing data; 130 stopped.
What goes wrong as expected is one line on standard error.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import time
from contextlib import redirect_stdout
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import pandas as pd
import torch

from . import batch, data, files, machine, models, plots, store, train
from .config import PRESETS, Run, choose, preset
from .methods import fields, make, method_class, methods
from .papers import cells
from .papers.runs import compare, runs_of, text
from .store import Record

CHROMIUM = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")


class Parser(argparse.ArgumentParser):
    """argparse, with errors on one line and exit code 2."""

    def error(self, message: str):
        print("kdkit:", " ".join(message.split()), file=sys.stderr)
        raise SystemExit(2)


def settings(items: list[str], known: list[str], what: str) -> dict[str, str]:
    """What `--set field=value` asks for; `known`: the fields there are."""
    changes = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item!r}: write field=value")
        changes[choose(name, known, what)] = value
    return changes


def run_of(args: argparse.Namespace, method: str, seed: int) -> Run:
    """The run that the options ask for, checked as far as that goes without its data."""
    cls = method_class(choose(method, methods(), "method"))
    ours = set(Run.__dataclass_fields__) - {"method", "preset", "params"}
    changes = {
        k: getattr(args, k) for k in ("data", "student", "teacher") if getattr(args, k) is not None
    }
    changes |= settings(args.set, [*sorted(ours), *fields(cls)], f"field of {method}")
    run = preset(args.preset, **{"seed": seed, **changes, "method": method})
    for name in args.teacher.split(",") if args.teacher else ():
        models.build(name.strip(), 3, 10)
    its = run
    while its is not None:  # the teacher is a run too, and may have one
        choose(its.data, data.datasets(), "data set")
        store.students(its, (3, 32, 32), 10)
        its = make(its).teacher_run(its)
    store.run_id(run)
    return run


def summary(record: Record, run: Run, from_store: bool) -> dict:
    """What `train --json` prints. Accuracies in percent, seconds of training."""
    r, meta = record.result, record.meta
    told = {
        "id": record.id,
        "method": record.run.method,
        "preset": run.preset,
        "seed": record.run.seed,
        "epochs": record.run.epochs,
        "threads": meta["environment"]["threads"],
        "precision": meta["environment"]["precision"],
    }
    told |= {
        k: r[k] for k in ("top1", "top1_deployed", "ensemble", "diversity", "correlation_number")
    }
    return told | {
        "seconds": meta["seconds"],
        "from_store": from_store,
        "resumed_at": meta["resumed_at"],
        "record": str(record.path),
        "weights_sha256": meta["weights_sha256"],
    }


def cmd_train(args) -> int:
    """train one run, or find it in the store"""
    with redirect_stdout(sys.stderr):  # a learner's module may print
        batch.load_module(args.module)
        run = run_of(args, args.method, args.seed)
        from_store = not args.fresh and store.find(run) is not None
        record = train.get(run, args.fresh)
    told = summary(record, run, from_store)
    if args.json:
        print(json.dumps(told))
        return 0
    accuracy = " ".join(f"{v:.2f}" for v in told["top1"])
    print(
        f"{plots.label(record)}, seed {told['seed']}: top-1 {accuracy} % in "
        f"{told['seconds']:.0f} s; {'from the store: ' if from_store else ''}{record.path}"
    )
    return 0


def cmd_sweep(args) -> int:
    """train many runs side by side"""
    batch.load_module(args.module)
    runs = [run_of(args, m, seed) for m in args.methods or methods() for seed in range(args.seeds)]
    return report(batch.sweep(runs, args.workers, args.module), f"{len(runs)} runs are stored")


def cmd_figures(args) -> int:
    """train what the figures need, execute the notebooks and draw"""
    choose(args.preset, PRESETS, "preset")
    failed = batch.figures(args.only, args.preset, args.seeds, args.workers)
    return report(failed, f"the figures are in {plots.figures_root()}")


def changed(args) -> dict[str, str]:
    """What `--set` changes in the recipe of the cells that `args.which` names."""
    free = [
        f
        for f in Run.__dataclass_fields__
        if not f.startswith(
            ("method", "preset", "params", "seed", "student", "teacher", "pretrained")
        )
    ]
    own = {f for name in cells(args.which)["method"] for f in fields(method_class(name))}
    changes = settings(args.set, [*free, *sorted(own)], "field")
    choose(changes.get("data", "lesson"), data.datasets(), "data set")
    return changes


def cmd_table(args) -> int:
    """print a table of the papers: published, ours and the difference"""
    changes = changed(args)
    told = compare(args.which, **changes)
    if args.json:
        print(json.dumps(told))
        return 0
    for (paper, table), part in groupby(told, key=lambda c: (c["paper"], c["table"])):
        part = list(part)
        if args.which is None:
            done = sum(c["run"] is not None for c in part)
            print(f"{f'{paper}:{table}':12} {len(part):3} cells, {done} of them run here")
        else:
            print(text(part, **changes), end="\n\n")
    return 0


def cmd_reproduce(args) -> int:
    """train what cells of the papers' tables need, teachers first"""
    changes = changed(args)
    wanted = [
        run
        for row in cells(args.which).itertuples()
        for group in runs_of(row, args.seeds, **changes)
        for run in group
    ]
    needed = [store.run_from(job.order["run"]) for job in batch.plan(wanted).values()]
    names = [f"{make(r).title} ({r.student}, {r.data}, seed {r.seed})" for r in needed]
    if lack := lacking(needed):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(
            f"{args.which} needs {', '.join(names[:3])}{more}; what is missing: {'; '.join(lack)}"
        )
    for name in names:
        print(f"to train: {name}")
    failed = batch.sweep(wanted, args.workers)
    cmd_table(args)
    return report(failed, "everything that these cells need is stored")


def lacking(runs: list[Run]) -> list[str]:
    """What this machine has not of the runs' data and, if that is all there, their weights."""
    sets, weights = {r.data for r in runs}, {r.student for r in runs if r.pretrained}
    lack = []
    for names, find in (
        (sets, lambda name: files.find(data.SETS[name].family, None)),
        (weights, models.pretrained),
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
        print(data.download(choose(args.name, data.datasets(), "data set"), args.root))
    except RuntimeError as e:  # torchvision's word for a transfer that came damaged
        raise OSError(e) from e
    return 0


def cmd_runs(args) -> int:
    """list the runs in the store"""
    done, under_way, damaged = store.records()
    rows = [
        {
            "id": r.id,
            "method": r.run.method,  # perhaps a learner's own that is not loaded now
            "label": plots.label(r) if r.run.method in methods() else r.meta["method"],
            "preset": r.run.preset,
            "seed": r.run.seed,
            "epochs": r.run.epochs,
            "top1": f"{r.result['top1_deployed']:.2f}",
            "seconds": round(r.meta["seconds"]),
            "finished": time.strftime("%Y-%m-%d %H:%M", time.localtime(r.meta["created"])),
        }
        for r in done
    ]
    print(pd.DataFrame(rows).to_string(index=False) if rows else f"no runs in {store.root()}")
    for path in under_way:
        print(f"{path.name} is not finished")
    for path in damaged:
        print(f"{path.name} is damaged: it is set aside and trained again when it is asked for")
    return 0


def cmd_gc(args) -> int:
    """clear leftovers out of the store"""
    found = store.leftovers()
    for path, why in found:
        print(f"{path}: {why}")
    if not found:
        print(f"nothing to clear in {store.root()}")
    elif not args.yes and not sys.stdin.isatty():
        print("cleared nothing: there is no terminal to ask; --yes clears")
    elif args.yes or input(f"clear these {len(found)}? [y/N] ").strip().lower() in ("y", "yes"):
        for path, _ in found:
            store.clear(path)
        print(f"cleared {len(found)}")
    else:
        print("cleared nothing")
    return 0


def cmd_list(args) -> int:
    """print names, one a line"""
    known = {"methods": methods, "models": models.models, "datasets": data.datasets}
    print("\n".join(known[choose(args.what, known, "list")]()))
    return 0


def cmd_doctor(args) -> int:
    """tell what this machine has and what kdkit makes of it"""
    device, dtype, why = machine.chosen(Run(precision="auto"))
    done, under_way, damaged = store.records()
    told = {
        "kdkit": str(Path(__file__).parent),
        "python": f"{platform.python_version()}, {sys.executable}",
    }
    told |= {name: version(name) for name in ("torch", "torchvision", "jupyterlab", "papermill")}
    told |= {
        "device": f"{device.type}, {machine.processor(device)}",
        "precision": f"{str(dtype).removeprefix('torch.')} where a run says auto: {why}",
        "threads": f"{torch.get_num_threads()} of torch, {batch.cores()} core(s) for sweep",
    }
    for name in data.datasets():
        try:
            told[f"data {name}"] = str(files.find(data.SETS[name].family, None).absolute())
        except files.MissingData:
            told[f"data {name}"] = f"not here; `python -m kdkit data {name}` tells how to get it"
    told["store"] = (
        f"{store.root()}: {len(done)} finished, {len(under_way)} under way, "
        f"{len(damaged)} damaged, {len(store.leftovers())} leftovers (gc clears)"
    )
    told["figures"] = str(plots.figures_root())
    told["browser"] = next(
        filter(None, map(shutil.which, CHROMIUM)), "no Chromium: the widgets' tests cannot run here"
    )
    width = max(map(len, told))
    for name, value in told.items():
        print(f"{name:{width}}  {value}")
    return 0


def parsers() -> dict[str, Parser]:
    """Command -> its parser."""
    made = {}
    for name, do in COMMANDS.items():
        made[name] = Parser(
            prog=f"python -m kdkit {name}", description=do.__doc__, allow_abbrev=False
        )
        made[name].set_defaults(do=do)
    picks = os.environ.get("KDKIT_PRESET") or "lesson"
    for name in ("train", "sweep", "figures"):
        made[name].add_argument(
            "--preset",
            default=picks,
            metavar="NAME",
            help=f"{', '.join(PRESETS)} (default: $KDKIT_PRESET, or lesson)",
        )
    for name in ("train", "sweep"):
        add = made[name].add_argument
        for option in ("data", "student", "teacher"):
            add(f"--{option}", metavar="NAME", help="see `python -m kdkit list`")
        add("--module", metavar="FILE.py", help="import this first: methods of your own")
    for name in ("train", "sweep", "table", "reproduce"):
        made[name].add_argument(
            "--set",
            action="append",
            default=[],
            metavar="FIELD=VALUE",
            help="any field of the run or of the method; may be repeated",
        )
    for name in ("table", "reproduce"):
        made[name].add_argument(
            "which",
            metavar="PAPER:TABLE[:ROW[:COLUMN]]",
            nargs="?" if name == "table" else None,
            help="for example okddip:2:ResNet-32; see `python -m kdkit table`",
        )
    made["table"].add_argument("--json", action="store_true", help="print a list of cells")
    made["reproduce"].set_defaults(json=False)
    made["reproduce"].add_argument(
        "--seeds",
        type=positive,
        default=1,
        metavar="N",
        help="repetitions of each cell (default 1; the papers have 3)",
    )
    for name in ("sweep", "figures", "reproduce"):
        made[name].add_argument("--workers", type=int, metavar="N", help="default: one a core")
    add = made["train"].add_argument
    add("method", metavar="METHOD", help="see `python -m kdkit list methods`")
    add("--seed", type=int, default=0)
    add("--fresh", action="store_true", help="train again and replace the stored run")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add = made["sweep"].add_argument
    add("methods", nargs="*", metavar="METHOD", help="default: all")
    add("--seeds", type=positive, default=1, metavar="N", help="seeds 0 to N-1 of each (default 1)")
    add = made["figures"].add_argument
    add("--only", metavar="FIGURE", help="draw this one, without its notebook")
    add(
        "--seeds",
        type=positive,
        default=os.environ.get("KDKIT_SEEDS") or "1",
        metavar="N",
        help="(default: $KDKIT_SEEDS, or 1)",
    )
    made["data"].add_argument("name", metavar="NAME", help="see `python -m kdkit list datasets`")
    made["data"].add_argument("--root", help="where to put it (default: $KDKIT_DATA, or ./data)")
    made["gc"].add_argument("--yes", action="store_true", help="do not ask")
    made["list"].add_argument("what", metavar="WHAT", help="methods, models or datasets")
    return made


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


COMMANDS = {
    "train": cmd_train,
    "sweep": cmd_sweep,
    "figures": cmd_figures,
    "table": cmd_table,
    "reproduce": cmd_reproduce,
    "data": cmd_data,
    "runs": cmd_runs,
    "gc": cmd_gc,
    "list": cmd_list,
    "doctor": cmd_doctor,
}


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of a command. ValueError with the nearest names for a wrong one."""
    usage = [f"  {name:9} {do.__doc__}" for name, do in COMMANDS.items()]
    if argv[:1] in (["-h"], ["--help"]):
        print(
            "usage: python -m kdkit COMMAND [options]\n",
            *usage,
            "\npython -m kdkit COMMAND --help tells the options",
            sep="\n",
        )
        raise SystemExit(0)
    if not argv:
        raise ValueError(f"name a command: {', '.join(COMMANDS)}")
    parser = parsers()[choose(argv[0], COMMANDS, "command")]
    args, extra = parser.parse_known_intermixed_args(argv[1:])
    for word in extra:
        if word.startswith("-"):
            choose(word.partition("=")[0], parser._option_string_actions, f"{argv[0]} option")
        raise ValueError(f"{argv[0]} does not take {word!r}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        return args.do(args)
    except ValueError as e:
        why, code = str(e), 2
    except BrokenPipeError:  # `python -m kdkit runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (train.NotFinite, OSError) as e:
        why, code = str(e), 1
    except train.Interrupted as e:
        why, code = str(e), 130
    except KeyboardInterrupt:
        why, code = "stopped; the same command goes on from what is saved", 130
    store.say(" ".join(why.split()))
    return code
