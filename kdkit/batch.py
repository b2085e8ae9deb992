"""Many runs and notebooks: jobs for worker processes, and the strict papermill runner.

A sweep is a list of jobs, each with what it needs; the first one that is ready goes to the next
free worker. Workers live for the whole sweep, take one JSON job a line on standard input and
answer one JSON event a line on standard output. When that pipe closes, however the parent ended,
a worker saves its run and stops.
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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
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
# Kernels that start at once may pick the same free port, and then wait for ever: files cannot.
TRANSPORT = Config(KernelManager={"transport": "ipc"} if os.name == "posix" else {})
# Runs in the kernel before the first cell: what a thread dies of is not lost with its cell.
HOOK = ("import threading as t; t.excepthook = lambda a, old=t.excepthook: (old(a), open({file!r}, "
        "'a').write(f'{{a.thread.name}}: {{a.exc_type.__name__}}: {{a.exc_value}}\\n'))")


@dataclass
class Job:
    """One order for a worker, a run or a notebook, and the jobs that must be done before it."""

    title: str
    order: dict
    needs: set[str] = field(default_factory=set)
    epochs: int = 0


def cores() -> int:
    """Processor cores that this process may use."""
    able = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(able(0)) if able else os.cpu_count() or 1


def plan(runs: Iterable[Run]) -> dict[str, Job]:
    """Run id -> job, for those of `runs` and of their teachers that are not in the store.

    A teacher comes before the first run that needs it, once. ValueError on bad fields.
    """
    jobs, known = {}, set()

    def add(run: Run) -> str:
        run = resolve(run)
        key, teacher = store.run_id(run), make(run).teacher_run(run)
        if key in known:
            return key
        known.add(key)
        if store.find(run) is None:
            needs = {add(teacher)} & jobs.keys() if teacher else set()
            title = f"{make(run).title} seed {run.seed} (run {key})"
            jobs[key] = Job(title, {"run": dataclasses.asdict(run)}, needs, run.epochs)
        return key

    for run in runs:
        add(run)
    return jobs


class Worker:
    """A worker process; what it says arrives in `events` as (worker, event)."""

    def __init__(self, events: queue.Queue, module: str | None):
        # A session of its own: Ctrl-C reaches the parent alone, which passes it on.
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from kdkit.batch import work; work()"], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **ALONE, "KDKIT_RUNS": str(store.root())}, start_new_session=True)
        self.events, self.module, self.key, self.seen = events, module, None, 0
        for stream in (self.process.stdout, self.process.stderr):
            threading.Thread(target=self._listen, args=(stream,), daemon=True).start()

    def _listen(self, stream) -> None:
        for line in stream:
            said = stream is self.process.stderr
            self.events.put((self, {"said": line.rstrip()} if said else json.loads(line)))
        if stream is self.process.stdout:
            code = self.process.wait()
            self.events.put((self, {"end": f"its worker process ended with code {code}"}))

    def give(self, key: str, job: Job) -> None:
        self.key, self.seen = key, 0
        with suppress(OSError):  # it has died: its "end" is on the way
            self.process.stdin.write(json.dumps({**job.order, "module": self.module}) + "\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        """Ask it to save and end; it may take a moment."""
        if self.process.poll() is None:
            self.process.terminate()
        with suppress(OSError):
            self.process.stdin.close()


def carry_out(jobs: dict[str, Job], workers: int | None = None, module: str | None = None,
              title: str = "sweep") -> dict[str, str]:
    """Do all jobs, side by side, in their order as far as their needs allow; one bar.

    workers: how many processes, by default one a core. Returns job -> why it failed.
    Raises train.Interrupted on Ctrl-C or SIGTERM, when the workers have saved their runs.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: must be at least 1")
    waiting, failed, crew, events = dict(jobs), {}, set(), queue.Queue()
    total = sum(job.epochs for job in jobs.values())
    with stoppable() as stop, tqdm(total=total, desc=title, unit="epoch",
                                   disable=train.quiet() or not jobs) as bar:
        try:
            while waiting or any(w.key for w in crew):
                for key in [k for k, job in waiting.items() if job.needs & failed.keys()]:
                    failed[key] = "something that it needs failed"
                    bar.update(waiting.pop(key).epochs)
                _hand_out(waiting, crew, events, workers or cores(), module)
                bar.set_postfix_str(f"{len(waiting)} waiting", refresh=False)
                try:
                    worker, event = events.get(timeout=0.2)  # so that a signal is heard
                    _heed(worker, event, jobs, failed, crew, bar)
                except queue.Empty:
                    pass
                if stop.is_set():
                    raise train.Interrupted("stopped, and what was under way is saved: the same "
                                            "command goes on from there")
        finally:
            for worker in crew:
                worker.stop()
            for worker in crew:
                worker.process.wait()
    return failed


def _hand_out(waiting: dict[str, Job], crew: set[Worker], events, most: int, module) -> None:
    """Give each free worker, or a new one, the first job whose needs are done."""
    busy = {w.key for w in crew if w.key}
    ready = [k for k, job in waiting.items() if not job.needs & (waiting.keys() | busy)]
    free = [w for w in crew if not w.key]
    for key in ready[: most - len(busy)]:
        worker = free.pop() if free else Worker(events, module)
        crew.add(worker)
        worker.give(key, waiting.pop(key))


def _heed(worker: Worker, event: dict, jobs: dict[str, Job], failed: dict, crew: set, bar) -> None:
    """Take note of what a worker said."""
    if "said" in event:
        bar.write(event["said"], file=sys.stderr)
    elif "epoch" in event:
        bar.update(event["epoch"] - worker.seen)
        worker.seen = event["epoch"]
    else:
        if worker.key:
            bar.update(jobs[worker.key].epochs - worker.seen)
            if "done" not in event:
                failed[worker.key] = event.get("error") or event["end"]
        worker.key = None
        if "end" in event:
            crew.discard(worker)


def work() -> None:
    """A worker's life: jobs from standard input, one at a time, until the pipe closes."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else prints must not mix with the events
    jobs = queue.SimpleQueue()

    def tell(**event):
        print(json.dumps(event), file=out, flush=True)

    def listen():
        for line in sys.stdin:
            jobs.put(json.loads(line))
        jobs.put(None)  # the parent is done, or dead
        os.kill(os.getpid(), signal.SIGTERM)  # a run under way saves and ends, all else just ends

    threading.Thread(target=listen, daemon=True).start()
    while order := jobs.get():
        try:
            if "notebook" in order:
                run_notebook(Path(order["notebook"]), Path(order["copy"]))
            else:
                load_module(order["module"])
                train.get(store.run_from(order["run"]),
                          on_epoch=lambda job: tell(epoch=job.epoch))
            tell(done=True)
        except train.Interrupted:
            os._exit(143)  # all is saved; to take torch down in good order costs seconds
        except (ValueError, OSError, RuntimeError, train.NotFinite) as e:
            tell(error=f"{e}")
        except Exception as e:  # a bug: the others of the sweep go on, the report names it
            traceback.print_exc()
            tell(error=f"{type(e).__name__}: {e}")


_loaded: set[str] = set()


def load_module(file: str | None) -> None:
    """Import a Python file once, so that the methods and networks in it are registered.

    ValueError, in one line, where it is missing or fails.
    """
    if not file or file in _loaded:
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
    _loaded.add(file)


def sweep(runs: Iterable[Run], workers: int | None = None,
          module: str | None = None) -> dict[str, str]:
    """Train what of `runs` is not in the store, side by side; the title of each failed run -> why.

    module: a Python file with the runs' own methods. What is stored already is not trained again,
    what was begun goes on. Errors: ValueError for bad fields, before anything is trained.
    """
    jobs = plan(runs)
    failed = carry_out(jobs, workers, module)
    return {jobs[k].title: why for k, why in failed.items()}


def notebooks() -> list[Path]:
    """The walk's notebooks, in order. ValueError where kdkit is installed without them."""
    folder = Path(__file__).parents[1] / "notebooks"
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise ValueError(f"{folder} holds no notebooks: clone the project to draw its figures")
    return found


def figures(only: str | None, preset_name: str, seeds: int,
            workers: int | None = None) -> dict[str, str]:
    """Draw the figures: every notebook is executed as soon as the runs of its figures are stored.

    only: one figure's name: its runs are trained, and it is drawn without its notebook.
    Executed copies go to the folder `notebooks` of the run store. Returns what failed and why.
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: must be at least 1")
    if only is not None:
        spec = plots.FIGURES[choose(only, plots.FIGURES, "figure")]
        runs = plots.wanted(only, preset_name, seeds)
        if failed := sweep(runs, workers):
            return failed
        records = [train.get(run) for run in runs]
        table = spec.table(records)
        plots.save(spec.draw(records), only, spec.say(table)[0], table)
        return {}
    jobs, copies = {}, store.root() / "notebooks"
    copies.mkdir(parents=True, exist_ok=True)
    for path in notebooks():
        names = [n for n, spec in plots.FIGURES.items() if spec.notebook == path.name[:2]]
        runs = [run for n in names for run in plots.wanted(n, preset_name, seeds)]
        jobs |= plan(runs)
        needs = {store.run_id(run) for run in runs} & jobs.keys()
        jobs[path.name] = Job(path.name, {"notebook": str(path), "copy": str(copies / path.name)},
                              needs)
    with environment(KDKIT_PRESET=preset_name, KDKIT_SEEDS=str(seeds),
                     KDKIT_FIGURES=str(plots.figures_root())):
        failed = carry_out(jobs, workers, title="figures")
    return {jobs[k].title: why for k, why in failed.items()}


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Environment variables for a while, which child processes inherit."""
    before = {k: os.environ.get(k) for k in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for k, old in before.items():
            os.environ.pop(k) if old is None else os.environ.update({k: old})


def run_notebook(src: Path, dst: Path, params: dict | None = None) -> None:
    """Execute the notebook `src` with papermill, strictly; the executed copy goes to `dst`.

    Errors: ValueError for parameters that the notebook has not; RuntimeError, in one line, for an
    error in a cell and for those that papermill lets pass, in Output widgets and in threads.
    """
    import papermill  # here: two seconds that only notebooks need

    known = papermill.inspect_notebook(str(src))
    for name in params or {}:
        choose(name, known, f"parameter of {src.name}")
    part = dst.with_name(f"{dst.stem}.{os.getpid()}.part.ipynb")
    with environment(**ALONE), tempfile.TemporaryDirectory() as folder:
        deaths = Path(folder) / "threads"
        line = HOOK.format(file=str(deaths))
        try:
            nb = papermill.execute_notebook(
                str(src), str(part), parameters=params or {}, progress_bar=False,
                kernel_name="python3", cwd=str(src.parent), start_timeout=120,
                request_save_on_cell_execute=False, config=TRANSPORT,
                extra_arguments=[f"--IPKernelApp.exec_lines={line}"])
        except papermill.PapermillExecutionError as e:
            raise RuntimeError(f"{src.name}, In [{e.exec_count}]: {e.ename}: {e.evalue}") from e
        finally:
            if part.exists():
                os.replace(part, dst)
        problems = deaths.read_text().splitlines() if deaths.exists() else []
    states = nb.metadata.get("widgets", {}).get(WIDGETS, {}).get("state", {}).values()
    outputs = [o for state in states for o in state["state"].get("outputs", ())]
    problems += [f"in an Output widget: {o['ename']}: {o['evalue']}" for o in outputs
                 if o["output_type"] == "error"]
    if problems:
        raise RuntimeError(f"{src.name}: errors that papermill lets pass: {'; '.join(problems)}")
