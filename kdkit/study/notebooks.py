"""The numbered notebooks: the strict papermill runner, and figures drawn from finished runs."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import zmq
from jupyter_client import AsyncKernelManager, KernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from nbclient.exceptions import DeadKernelError
from traitlets.config import Config

from ..fields import choose
from . import files, store
from .figures import index
from .plans import preset
from .project import walk_folder
from .runs import get
from .sweep import WORKER_ENV, Job, missing, run_jobs, sweep

WIDGET_STATE_MIME = "application/vnd.jupyter.widget-state+json"
# Runs in the kernel before the first cell: what a thread dies of is not lost with its cell.
THREAD_HOOK = (
    "import os, threading as t; os.environ.update({alone!r}); "
    "t.excepthook = lambda a, old=t.excepthook: (old(a), open({file!r}, 'a').write("
    "f'{{a.thread.name}}: {{a.exc_type.__name__}}: {{a.exc_value}}\\n'))"
)


def notebooks() -> list[Path]:
    """The numbered notebooks, in order. ValueError where there are none."""
    folder = walk_folder() / "notebooks"
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise ValueError(
            f"{folder} holds no numbered notebooks: `kdkit lab FOLDER` puts them there"
        )
    return found


def figures(
    only: str | None,
    preset_name: str,
    seeds: int | str,
    workers: int | None = None,
    module: str | None = None,
) -> dict[str, str]:
    """Draw the figures: every notebook is executed as soon as the runs of its figures are stored.

    only: one figure's name: its runs are trained, and it is drawn without its notebook. seeds: how
    many, or "reference": the project's reference where that will do, else seed 0. module: a
    Python file, imported already, with that figure's own methods.
    Executed copies go to the folder `notebooks` of the run store. Returns what failed and why.
    """
    from_reference = seeds == "reference"
    trained = [0] if from_reference else range(int(seeds))
    if only is not None:
        runs = index.wanted(only, preset_name, trained, from_reference)
        if failed := sweep(runs, workers, module):
            return failed
        rows = index.reference_records(index.get_figure(only), preset(preset_name))
        own = [get(run) for run in runs]
        beneath = rows if len(rows) > len(own) else []
        table, fig, (alt, *_) = index.make(
            only, *((rows, ()) if from_reference and rows else (own, beneath))
        )
        index.save(fig, only, alt, table)
        return {}
    return execute(notebooks(), preset_name, seeds, workers)


def execute(
    paths: Iterable[Path], preset_name: str, seeds: int | str, workers: int | None = None
) -> dict[str, str]:
    """Execute notebooks side by side, each as soon as the runs of its figures are stored.

    Arguments, copies and what is returned are those of `figures`.
    """
    from_reference = seeds == "reference"
    trained = [0] if from_reference else range(int(seeds))
    jobs, copies = {}, store.root() / "notebooks"
    copies.mkdir(parents=True, exist_ok=True)
    for path in paths:
        needed = missing(
            run
            for name in index.list_figures()
            if index.get_figure(name).notebook == path.name[:2]
            for run in index.wanted(name, preset_name, trained, from_reference)
        )
        payload = {"function": f"{__name__}:run_notebook"}
        payload |= {"arguments": [str(path), str(copies / path.name)]}
        jobs |= needed | {path.name: Job(path.name, payload, set(needed))}
    return run_jobs(
        jobs,
        workers,
        title="figures",
        KDKIT_PRESET=preset_name,
        KDKIT_SEEDS=str(seeds),
        KDKIT_FIGURES=str(index.figures_root()),
        KDKIT_DATA=str(files.default_root()),
    )


class _ShellChannel(AsyncZMQSocketChannel):
    """Looks again whether an answer has come, after each message that it sends.

    To send clears the sign of an answer that came in the same moment. The runner sends one for each
    change of an Output widget, while it waits for a cell's answer, and would wait for ever.
    """

    def send(self, msg: dict) -> None:
        super().send(msg)
        self.socket.get(zmq.EVENTS)


class _KernelManager(AsyncKernelManager):
    def client(self, **options) -> KernelClient:
        client = super().client(**options)
        client.shell_channel_class = _ShellChannel
        return client


def run_notebook(src: Path | str, dst: Path | str, params: dict | None = None) -> None:
    """Execute the notebook `src` with papermill, strictly; the executed copy goes to `dst`.

    Where all went well, the copy's metadata `kdkit` say with which preset and seeds.
    Errors: ValueError for parameters that the notebook has not; RuntimeError, in one line, for an
    error in a cell and for those that papermill lets pass, in Output widgets and in threads.
    """
    import papermill  # here: two seconds that only notebooks need

    src, dst = Path(src), Path(dst)
    known = papermill.inspect_notebook(str(src))
    for name in params or {}:
        choose(name, known, f"parameter of {src.name}")
    with tempfile.TemporaryDirectory() as folder:
        deaths, sockets = Path(folder) / "threads", {"transport": "ipc", "ip": f"{folder}/kernel"}
        # Kernels that start at once may pick the same free port, and then wait for ever.
        config = Config(KernelManager=sockets if os.name == "posix" else {})
        hook = THREAD_HOOK.format(alone=WORKER_ENV, file=str(deaths))
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
                kernel_manager_class=_KernelManager,
                extra_arguments=[
                    "--Application.log_level=CRITICAL",  # else it tells of its own shutdown
                    f"--IPKernelApp.exec_lines={hook}",
                ],
            )
        except papermill.PapermillExecutionError as e:
            raise RuntimeError(f"{src.name}, In [{e.exec_count}]: {e.ename}: {e.evalue}") from e
        except DeadKernelError as e:
            raise RuntimeError(f"{src.name}: its kernel died") from e
        problems = deaths.read_text().splitlines() if deaths.exists() else []
    states = nb.metadata.get("widgets", {}).get(WIDGET_STATE_MIME, {}).get("state", {}).values()
    outputs = [o for state in states for o in state["state"].get("outputs", ())]
    problems += [
        f"in an Output widget: {o['ename']}: {o['evalue']}"
        for o in outputs
        if o["output_type"] == "error"
    ]
    if problems:
        raise RuntimeError(f"{src.name}: errors that papermill lets pass: {'; '.join(problems)}")
    nb.metadata["kdkit"] = made_with()
    papermill.iorw.write_ipynb(nb, str(dst))


def made_with() -> dict[str, str]:
    """The preset and the seeds that the environment names for notebooks."""
    names = {"preset": ("KDKIT_PRESET", "lesson"), "seeds": ("KDKIT_SEEDS", "1")}
    return {key: os.environ.get(name) or default for key, (name, default) in names.items()}
