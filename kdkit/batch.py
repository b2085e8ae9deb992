"""Many runs and notebooks: jobs for worker processes, and the strict papermill runner.

A sweep is a list of jobs, each with what it needs; the first one that is ready goes to the next
free worker. Workers live for the whole sweep, take one JSON job a line on standard input and
answer on standard output. When that pipe closes, however the parent ended, a worker saves its run
and stops.
"""

import dataclasses
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tqdm.auto import tqdm
from traitlets.config import Config

from . import plots, store, train
from .config import Run, choose
from .machine import stoppable
from .methods import make, resolve

# So that two notebooks or runs side by side share the cores, and nothing waits for a front end.
ALONE = {"KDKIT_BATCH": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
WIDGETS = "application/vnd.jupyter.widget-state+json"
# Runs in the kernel before the first cell: what a thread dies of is not lost with its cell.
HOOK = (
    "import os, threading as t; os.environ.update({alone!r}); "
    "t.excepthook = lambda a, old=t.excepthook: (old(a), open({file!r}, 'a').write("
    "f'{{a.thread.name}}: {{a.exc_type.__name__}}: {{a.exc_value}}\\n'))"
)
EVENT = "\x1e"  # begins what a worker tells its parent; all else on that line is for people


@dataclass
class Job:
    """One order for a worker, a run or a notebook, and the jobs that must be done before it."""

    title: str
    order: dict
    needs: set[str] = field(default_factory=set)
    epochs: int = 1  # of the bar; a notebook counts as one


def cores() -> int:
    """Processor cores that this process may use."""
    able = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(able(0)) if able else os.cpu_count() or 1


def plan(runs: Iterable[Run]) -> dict[str, Job]:
    """Run id -> job, for those of `runs` and of their teachers that are not in the store.

    A teacher comes before the first run that needs it, once. ValueError on bad fields.
    """
    jobs, stored = {}, cache(store.find)

    def add(run: Run) -> str:
        run = resolve(run)
        key, teacher = store.run_id(run), make(run).teacher_run(run)
        if key not in jobs and stored(run) is None:
            needs = {add(teacher)} & jobs.keys() if teacher else set()
            title = f"{make(run).title} seed {run.seed} (run {key})"
            jobs[key] = Job(title, {"run": dataclasses.asdict(run)}, needs, run.epochs)
        return key

    for run in runs:
        add(run)
    return jobs


def carry_out(
    jobs: dict[str, Job],
    workers: int | None = None,
    module: str | None = None,
    title: str = "sweep",
    **env: str,
) -> dict[str, str]:
    """Do all jobs, side by side, in their order as far as their needs allow; one bar.

    workers: how many processes, by default one a core; env: variables for them. Returns the title
    of each failed job -> why. Raises train.Interrupted on Ctrl-C or SIGTERM, when the workers have
    saved their runs.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: must be at least 1")
    waiting, crew, busy, failed = dict(jobs), [], {}, {}
    epochs, ends = dict.fromkeys(jobs, 0), queue.Queue()

    def watch(worker: subprocess.Popen, key: str) -> None:
        """Give a worker a job and listen until it ends; on a thread of its own."""
        with suppress(OSError):  # it has died, and nothing will be heard
            print(json.dumps({**jobs[key].order, "module": module}), file=worker.stdin, flush=True)
        for line in worker.stdout:
            said, _, event = line.rstrip().partition(EVENT)
            if said:
                bar.write(said, file=sys.stderr)
            told = json.loads(event or "{}")
            epochs[key] = told.get("epoch", epochs[key])
            if "failed" in told:
                return ends.put((key, told["failed"]))
        ends.put((key, f"its worker process ended with code {worker.wait()}"))

    env = {**os.environ, **ALONE, "KDKIT_RUNS": str(store.root()), **env}
    total = sum(job.epochs for job in jobs.values())
    with (
        stoppable() as stop,
        tqdm(
            total=total, desc=title, unit="epoch", mininterval=1, disable=store.quiet() or not jobs
        ) as bar,
    ):
        try:
            while True:
                undone = waiting.keys() | busy.keys() | failed.keys()
                ready = [k for k, job in waiting.items() if not job.needs & undone]
                for key in ready[: (workers or cores()) - len(busy)]:
                    free = [w for w in crew if w not in busy.values() and w.poll() is None]
                    if not free:
                        free = [hire(env)]
                        crew += free
                    del waiting[key]
                    busy[key] = free[0]
                    threading.Thread(target=watch, args=(free[0], key), daemon=True).start()
                if not busy:
                    failed |= dict.fromkeys(waiting, "something that it needs failed")
                    return {jobs[k].title: why for k, why in failed.items()}
                bar.set_postfix_str(f"{len(waiting)} waiting", refresh=False)
                with suppress(queue.Empty):
                    key, why = ends.get(timeout=0.2)  # so that a signal is heard
                    del busy[key]
                    epochs[key] = jobs[key].epochs
                    if why is not None:
                        failed[key] = why
                bar.update(sum(epochs.values()) - bar.n)
                if stop.is_set():
                    raise train.Interrupted(
                        "stopped, and what was under way is saved: the same "
                        "command goes on from there"
                    )
        finally:
            for worker in crew:
                worker.terminate()  # it saves and ends
            for worker in crew:
                worker.wait()


def hire(env: dict[str, str]) -> subprocess.Popen:
    """A worker process, in a session of its own: Ctrl-C reaches the parent, which passes it on."""
    return subprocess.Popen(
        [sys.executable, "-c", "from kdkit.batch import work; work()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.STDOUT,
        env=env,
        start_new_session=True,
    )


def work() -> None:
    """A worker's life: jobs from standard input, one at a time, until the pipe closes."""
    orders = queue.SimpleQueue()

    def tell(**event):
        with suppress(OSError):  # the parent is dead: `listen` stops the run
            print(EVENT + json.dumps(event), flush=True)

    def listen():
        for line in sys.stdin:
            orders.put(json.loads(line))
        os.kill(os.getpid(), signal.SIGTERM)  # a run under way saves and ends, all else just ends

    threading.Thread(target=listen, daemon=True).start()
    while True:
        order, why = orders.get(), None
        try:
            if "notebook" in order:
                run_notebook(Path(order["notebook"]), Path(order["copy"]))
            else:
                load_module(order["module"])
                train.get(store.run_from(order["run"]), on_epoch=lambda job: tell(epoch=job.epoch))
        except train.Interrupted:
            os._exit(143)  # all is saved; to take torch down in good order costs seconds
        except (ValueError, OSError, RuntimeError, train.NotFinite) as e:
            why = str(e)
        except Exception as e:  # a bug: the others of the sweep go on, the report names it
            traceback.print_exc()
            why = f"{type(e).__name__}: {e}"
        tell(failed=why)


@cache
def load_module(file: str | None) -> None:
    """Import a Python file once, so that the methods and networks in it are registered.

    ValueError, in one line, where it is missing or fails.
    """
    if not file:
        return
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"module {file!r}: there is no such Python file")
    spec = importlib.util.spec_from_file_location(f"learner_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        at = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == str(path)]
        line = at[-1] if at else getattr(e, "lineno", "?")
        raise ValueError(f"{file}, line {line}: {type(e).__name__}: {e}") from e


def sweep(
    runs: Iterable[Run], workers: int | None = None, module: str | None = None
) -> dict[str, str]:
    """Train what of `runs` is not in the store, side by side; the title of each failed run -> why.

    module: a Python file with the runs' own methods. What is stored already is not trained again,
    what was begun goes on. Errors: ValueError for bad fields, before anything is trained.
    """
    return carry_out(plan(runs), workers, module)


def notebooks() -> list[Path]:
    """The walk's notebooks, in order. ValueError where kdkit is installed without them."""
    folder = Path(__file__).parents[1] / "notebooks"
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise ValueError(f"{folder} holds no notebooks: clone the project to draw its figures")
    return found


def figures(
    only: str | None, preset_name: str, seeds: int, workers: int | None = None
) -> dict[str, str]:
    """Draw the figures: every notebook is executed as soon as the runs of its figures are stored.

    only: one figure's name: its runs are trained, and it is drawn without its notebook.
    Executed copies go to the folder `notebooks` of the run store. Returns what failed and why.
    """
    if only is not None:
        runs = plots.wanted(only, preset_name, seeds)
        if failed := sweep(runs, workers):
            return failed
        spec, records = plots.FIGURES[only], [train.get(run) for run in runs]
        table = spec.table(records)
        plots.save(spec.draw(records), only, spec.say(table)[0], table)
        return {}
    jobs, copies = {}, store.root() / "notebooks"
    copies.mkdir(parents=True, exist_ok=True)
    for path in notebooks():
        mine = plan(
            run
            for name, spec in plots.FIGURES.items()
            if spec.notebook == path.name[:2]
            for run in plots.wanted(name, preset_name, seeds)
        )
        order = {"notebook": str(path), "copy": str(copies / path.name)}
        jobs |= mine | {path.name: Job(path.name, order, set(mine))}
    return carry_out(
        jobs,
        workers,
        title="figures",
        KDKIT_PRESET=preset_name,
        KDKIT_SEEDS=str(seeds),
        KDKIT_FIGURES=str(plots.figures_root()),
    )


def run_notebook(src: Path, dst: Path, params: dict | None = None) -> None:
    """Execute the notebook `src` with papermill, strictly; the executed copy goes to `dst`.

    Errors: ValueError for parameters that the notebook has not; RuntimeError, in one line, for an
    error in a cell and for those that papermill lets pass, in Output widgets and in threads.
    """
    import papermill  # here: two seconds that only notebooks need

    known = papermill.inspect_notebook(str(src))
    for name in params or {}:
        choose(name, known, f"parameter of {src.name}")
    with tempfile.TemporaryDirectory() as folder:
        deaths, sockets = Path(folder) / "threads", {"transport": "ipc", "ip": f"{folder}/kernel"}
        # Kernels that start at once may pick the same free port, and then wait for ever.
        config = Config(KernelManager=sockets if os.name == "posix" else {})
        try:
            nb = papermill.execute_notebook(
                str(src),
                str(dst),
                parameters=params or {},
                progress_bar=False,
                kernel_name="python3",
                cwd=str(src.parent),
                start_timeout=120,
                request_save_on_cell_execute=False,
                config=config,
                extra_arguments=[
                    "--Application.log_level=CRITICAL",  # else it tells of its own shutdown
                    f"--IPKernelApp.exec_lines={HOOK.format(alone=ALONE, file=str(deaths))}",
                ],
            )
        except papermill.PapermillExecutionError as e:
            raise RuntimeError(f"{src.name}, In [{e.exec_count}]: {e.ename}: {e.evalue}") from e
        problems = deaths.read_text().splitlines() if deaths.exists() else []
    states = nb.metadata.get("widgets", {}).get(WIDGETS, {}).get("state", {}).values()
    outputs = [o for state in states for o in state["state"].get("outputs", ())]
    problems += [
        f"in an Output widget: {o['ename']}: {o['evalue']}"
        for o in outputs
        if o["output_type"] == "error"
    ]
    if problems:
        raise RuntimeError(f"{src.name}: errors that papermill lets pass: {'; '.join(problems)}")
