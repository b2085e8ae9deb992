"""Many runs side by side: jobs for worker processes of this machine.

A sweep is a list of jobs, each with what it needs; the first one that is ready goes to the next
free worker. Workers live for the whole sweep, take one JSON job a line on standard input and
answer on standard output. When that pipe closes, however the parent ended, a worker saves its run
and stops.
"""

import dataclasses
import importlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tqdm.auto import tqdm

from ..callbacks import NotFinite
from . import fingerprint, project, store
from .callbacks import Interrupted, stoppable
from .plans import Plan, Run, label, plan, run_from
from .runs import check_fit, get

# Of workers: one thread each, so that they share the cores, and nothing waits for a front end.
WORKER_ENV = {"KDKIT_BATCH": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
EVENT_MARK = "\x1e"  # begins what a worker tells its parent; all else on that line is for people


@dataclass
class Job:
    """Work for one process, a run or a notebook, and the jobs that must be done before it."""

    title: str
    payload: dict
    needs: set[str] = field(default_factory=set)
    epochs: int = 1  # of the bar; a notebook counts as one
    kind: str = ""  # of run, as figures name it

    def progress(self, epoch: int) -> str:
        """What is under way, for the bar."""
        return f"{self.kind} {epoch}/{self.epochs}" if self.kind else self.title


def cores() -> int:
    """Processor cores that this process may use."""
    able = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(able(0)) if able else os.cpu_count() or 1


def missing(runs: Iterable[Run | Plan]) -> dict[str, Job]:
    """Run id -> job, for those of `runs` and of their teachers that are not in the store.

    A teacher comes before the first run that needs it, once. ValueError on bad fields.
    """
    jobs: dict[str, Job] = {}
    stored: dict[str, bool] = {}

    def add(planned: Plan) -> str:
        if planned.id not in stored:
            stored[planned.id] = store.find(planned) is not None
        if planned.id not in jobs and not stored[planned.id]:
            needs = {add(planned.teacher)} & jobs.keys() if planned.teacher else set()
            title = f"{planned.title} (run {planned.id})"
            payload = {"run": dataclasses.asdict(planned.run)}
            jobs[planned.id] = Job(title, payload, needs, planned.run.epochs, label(planned))
        return planned.id

    for run in runs:
        add(plan(run))
    return jobs


def run_jobs(
    jobs: dict[str, Job],
    workers: int | None = None,
    module: str | None = None,
    title: str = "sweep",
    on_done: Callable[[str], None] | None = None,
    **env: str,
) -> dict[str, str]:
    """Do all jobs, side by side, in their order as far as their needs allow; one bar.

    workers: how many processes, by default one per core; on_done: called with the key of each job
    that succeeded; env: variables for the processes. Returns the title of each failed job -> why.
    Raises Interrupted on Ctrl-C or SIGTERM, when the workers have saved their runs.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: must be at least 1")
    waiting, processes, busy, failed = dict(jobs), [], {}, {}
    epochs, finished = dict.fromkeys(jobs, 0), queue.Queue()

    def watch(process: subprocess.Popen, key: str) -> None:
        """Give a worker a job and listen until it ends; on a thread of its own."""
        for text, event in run_on_worker(process, {**jobs[key].payload, "module": module}):
            if text:
                bar.write(text, file=sys.stderr)
            epochs[key] = event.get("epoch", epochs[key])
            if "failed" in event:
                return finished.put((key, event["failed"]))
        finished.put((key, f"its worker process ended with code {process.wait()}"))

    env = {**os.environ, **WORKER_ENV, **env}
    total = sum(job.epochs for job in jobs.values())
    with (
        stoppable() as stop,
        tqdm(
            total=total,
            desc=title,
            unit="epoch",
            mininterval=1,
            disable=store.quiet() or not jobs,
        ) as bar,
    ):
        try:
            while True:
                undone = waiting.keys() | busy.keys() | failed.keys()
                ready = [k for k, job in waiting.items() if not job.needs & undone]
                for key in ready[: (workers or cores()) - len(busy)]:
                    idle = [p for p in processes if p not in busy.values() and p.poll() is None]
                    if not idle:
                        idle = [start_worker(env)]
                        processes += idle
                    del waiting[key]
                    busy[key] = idle[0]
                    threading.Thread(target=watch, args=(idle[0], key), daemon=True).start()
                if not busy:
                    failed |= dict.fromkeys(waiting, "something that it needs failed")
                    return {jobs[k].title: why for k, why in failed.items()}
                under_way = [jobs[key].progress(epochs[key]) for key in busy]
                bar.set_postfix_str(f"{'; '.join(under_way)}; {len(waiting)} waiting", False)
                with suppress(queue.Empty):
                    key, why = finished.get(timeout=0.2)  # so that a signal is heard
                    del busy[key]
                    epochs[key] = jobs[key].epochs
                    if why is not None:
                        failed[key] = why
                    elif on_done:
                        on_done(key)
                bar.update(sum(epochs.values()) - bar.n)
                if stop.is_set():
                    raise Interrupted(
                        "stopped, and what was under way is saved: the same command goes on from "
                        "there"
                    )
        finally:
            for process in processes:
                process.terminate()  # it saves and ends
            for process in processes:
                process.wait()


def start_worker(env: dict[str, str]) -> subprocess.Popen:
    """A worker process with the same stores, wherever it runs, in a session of its own: Ctrl-C
    reaches the parent, which passes it on."""
    return subprocess.Popen(
        [sys.executable, "-c", "from kdkit.study.sweep import work; work()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.STDOUT,
        env={**env, **project.runs_variable()},
        start_new_session=True,
    )


def run_on_worker(process: subprocess.Popen, payload: dict) -> Iterator[tuple[str, dict]]:
    """Give a worker a job; (text for people, event) for each line that it says.

    A job's last event is {"failed": why, or None}; {"stopped": why} where it was interrupted.
    """
    with suppress(OSError):  # it has died, and nothing will be heard
        print(json.dumps(payload), file=process.stdin, flush=True)
    for line in process.stdout:
        text, _, event = line.rstrip().partition(EVENT_MARK)
        yield text, json.loads(event or "{}")


def work() -> None:
    """A worker's life: jobs from standard input, one at a time, until the pipe closes."""
    payloads = queue.SimpleQueue()

    def tell(**event):
        with suppress(OSError):  # the parent is dead: `listen` stops the run
            print(EVENT_MARK + json.dumps(event), flush=True)

    def listen():
        for line in sys.stdin:
            payloads.put(json.loads(line))
        os.kill(os.getpid(), signal.SIGTERM)  # a run under way saves and ends, all else just ends

    threading.Thread(target=listen, daemon=True).start()
    while True:
        payload, why = payloads.get(), None
        try:
            if "function" in payload:  # "module:name", imported only here
                module, _, name = payload["function"].partition(":")
                getattr(importlib.import_module(module), name)(*payload["arguments"])
            else:
                load_module(payload.get("module"))
                run = run_from(payload["run"])
                get(run, on_epoch=lambda state: tell(epoch=state.epoch + 1))
        except Interrupted as e:
            tell(stopped=str(e))
            os._exit(143)  # all is saved; to take torch down in good order costs seconds
        except (ValueError, OSError, RuntimeError, NotFinite) as e:
            why = str(e)
        except Exception as e:  # a bug: the others of the sweep go on, the report names it
            traceback.print_exc()
            why = f"{type(e).__name__}: {e}"
        tell(failed=why)


@cache
def load_module(file: str | None) -> None:
    """Import a Python file once, so that the methods and networks in it are registered; it may
    import the files beside it.

    ValueError, in one line, where it is missing or fails.
    """
    if not file:
        return
    path = Path(file).expanduser().absolute()
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"module {file!r}: there is no such Python file")
    spec = importlib.util.spec_from_file_location(f"learner_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:
        lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == str(path)]
        line = lines[-1] if lines else getattr(e, "lineno", "?")
        raise ValueError(f"{file}, line {line}: {type(e).__name__}: {e}") from e


def own_names(planned: Plan) -> list[str]:
    """What of a run, or of its teachers, is a user's and not the package's."""
    own = fingerprint.user_code(planned.run)
    return own + own_names(planned.teacher) if planned.teacher else own


def sweep(
    runs: Iterable[Run],
    workers: int | None = None,
    module: str | None = None,
    on_done: Callable[[str], None] | None = None,
) -> dict[str, str]:
    """Train what of `runs` is not in the store, side by side; the title of each failed run -> why.

    module: a Python file with the runs' own methods. on_done: called with the id of each run that
    is stored now. What is stored already is not trained again,
    what was begun goes on. ValueError, before anything is trained, for bad fields and for a run
    that does not fit its networks and data.
    """
    plans = [plan(run) for run in runs]
    for planned in plans if module is None else ():
        if own := own_names(planned):
            raise ValueError(
                f"{planned.title}: {', '.join(own)} is defined in this session, which worker "
                "processes do not see: put it into a file and name that as module, or train here, "
                "one run after another, with lab.all"
            )
    check_fit(plans)
    return run_jobs(missing(plans), workers, module, on_done=on_done)
