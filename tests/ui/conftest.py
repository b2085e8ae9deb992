"""A real JupyterLab on loopback, opened in a headless Chromium: `pytest tests/ui`, on its own.

Nothing but the loopback address is asked for; everything that is started is stopped.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from json import dumps
from pathlib import Path

import nbformat
import pytest

from kdkit.study import figures, sweep
from kdkit.study.commands import CHROMIUM

ROOT = Path(__file__).parents[2]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-proxy-server",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
SETTINGS = {  # of JupyterLab: no question about news, no autosave, every cell in the page
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}
FOLDERS = {
    "JUPYTER_CONFIG_DIR": "config",
    "JUPYTER_DATA_DIR": "data",
    "IPYTHONDIR": "ipython",
    "JUPYTER_RUNTIME_DIR": "runtime",
    "JUPYTERLAB_SETTINGS_DIR": "settings",
    "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    "MPLCONFIGDIR": "mpl",
}
READY = """() => { const w = window.jupyterapp?.shell?.currentWidget;
  return !!(w?.context?.isReady && w.sessionContext?.session?.kernel?.status === 'idle'); }"""
RUN_ALL = """ms => Promise.race([window.jupyterapp.commands.execute('notebook:run-all-cells'),
  new Promise((_, no) => setTimeout(() => no(new Error('run-all timed out')), ms))])"""
HEIGHT = """panel => { panel.querySelector('.jp-WindowedPanel-outer').scrollTop = 0;
  return [...panel.querySelectorAll('.jp-Cell')].at(-1).getBoundingClientRect().bottom; }"""
SHUT = "() => window.jupyterapp?.shell?.currentWidget?.sessionContext.shutdown()"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


@contextmanager
def served(root: Path, scratch: Path):
    """A JupyterLab of its own settings over the folder `root`; (address, token)."""
    token = secrets.token_hex(16)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k not in ("KDKIT_BATCH", "KDKIT_SEEDS")}
    path = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    env |= {"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": path}
    for name, folder in FOLDERS.items():
        (scratch / folder).mkdir()
        env[name] = str(scratch / folder)
    (scratch / "config/labconfig").mkdir()
    (scratch / "config/labconfig/default_setting_overrides.json").write_text(dumps(SETTINGS))
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={root}",
        f"--IdentityProvider.token={token}",
        "--ServerApp.terminals_enabled=False",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.expose_app_in_browser=True",
    ]
    base, log = f"http://127.0.0.1:{port}", scratch / "lab.log"
    with log.open("wb") as out:
        lab = subprocess.Popen(
            command, cwd=root, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            end = time.monotonic() + 120
            while True:
                if lab.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"jupyter lab did not start:\n{log.read_text()[-3000:]}")
                with suppress(OSError):
                    asked = urllib.request.Request(
                        base + "/api/status", headers={"Authorization": f"token {token}"}
                    )
                    urllib.request.urlopen(asked, timeout=2).close()
                    break
                time.sleep(0.2)
            yield base, token
        finally:
            lab.send_signal(signal.SIGTERM)  # it shuts its kernels down
            try:
                lab.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(lab.pid, signal.SIGKILL)
                lab.wait()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """What the server shows: the walk's notebooks, beside a folder of figures."""
    root = tmp_path_factory.mktemp("walk")
    shutil.copytree(
        ROOT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns(".*", "__pycache__")
    )
    (root / "figures").mkdir()
    return root


@pytest.fixture(scope="session")
def server(apart, folder, tmp_path_factory):
    with served(folder, tmp_path_factory.mktemp("jupyter")) as at:
        yield at


@pytest.fixture(scope="session")
def browser():
    names = [os.environ.get("KDKIT_CHROMIUM", ""), *CHROMIUM]
    found = next(filter(None, map(shutil.which, names)), None)
    assert found, "no Chromium here; on Debian, as root: apt-get install chromium-headless-shell"
    from playwright.sync_api import expect, sync_playwright  # optional: pip install -e .[ui]

    expect.set_options(timeout=30_000)  # a busy machine is slow, not wrong
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=found, headless=True, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def trained(apart):
    """trained(*runs): train what is missing of them, in the session's store."""

    def fill(*runs):
        assert sweep.sweep(runs or figures.wanted(None, "smoke", 1)) == {}

    return fill


class Notebook:
    """A notebook open in the browser, and what went wrong on its page."""

    def __init__(self, page, at: tuple[str, str], path: str):
        base, token = at
        self.page, self.errors, self.outside = page, [], []
        page.on("pageerror", lambda e: self.errors.append(str(e)))
        page.on(
            "request",
            lambda r: r.url.startswith((base, "data:", "blob:")) or self.outside.append(r.url),
        )
        page.goto(f"{base}/lab/workspaces/auto-t/tree/{path}?reset&token={token}")
        self.panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        self.panel.wait_for()
        page.wait_for_function(READY)  # fails also on a dialog that asks for a kernel

    def run_all(self, seconds: float = 240) -> None:
        """Run every cell; no error in a cell, in an Output widget or in a widget's view."""
        done = self.page.evaluate(RUN_ALL, 1000 * seconds)
        self.look()
        assert done, "a cell raised"

    def look(self) -> None:
        """Nothing red on the page, no broken view, no error in its scripts, no call outside."""
        red = self.panel.locator(
            "[data-mime-type='application/vnd.jupyter.stderr'] .ansi-red-fg, "
            "[data-mime-type='application/vnd.jupyter.error']"
        )
        assert red.all_inner_texts() == []
        assert self.panel.locator(".jupyter-widgets-error-widget").count() == 0
        assert self.page.locator(".jp-Dialog").count() == 0
        assert self.errors == [] and self.outside == []

    def find(self, name: str):
        """A control or a part of a panel by its class."""
        return self.panel.locator(f".{name}")

    def knob(self, name: str):
        """What of a control takes the keyboard."""
        return self.find(name).locator("[role=slider], input[type=checkbox]").first

    def button(self, name: str, text: str):
        """One of a control's buttons."""
        return self.find(name).get_by_role("button", name=text, exact=True)

    def shoot(self, name: str, of=None) -> None:
        """A screenshot of the whole notebook, or of a part of it, for a person to look at."""
        tall = self.panel.evaluate(HEIGHT)
        self.page.set_viewport_size({"width": 1280, "height": min(int(tall) + 60, 16_000)})
        self.panel.evaluate(HEIGHT)  # to the top again
        where = Path(os.environ.get("KDKIT_SHOTS") or ROOT / "figures" / "local" / "ui")
        where.mkdir(parents=True, exist_ok=True)
        (of or self.page).screenshot(path=where / f"{name}.png")


@contextmanager
def opening(browser, server, folder):
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, reduced_motion="reduce")
    context.set_default_timeout(60_000)
    opened = []

    def go(path: str, *cells: str) -> Notebook:
        """Open a notebook, or one that is made of `cells`."""
        if cells:
            nb = nbformat.v4.new_notebook(metadata={"kernelspec": KERNEL})
            nb.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
            nbformat.write(nb, folder / path)
        opened.append(Notebook(context.new_page(), server, path))
        return opened[-1]

    try:
        yield go
    finally:
        for nb in opened:
            nb.page.evaluate(SHUT)
        context.close()


@pytest.fixture
def open_notebook(browser, server, folder):
    with opening(browser, server, folder) as go:
        yield go


@pytest.fixture(scope="module")
def open_shared(browser, server, folder):
    with opening(browser, server, folder) as go:
        yield go


TIMES: list[str] = []


@pytest.fixture(scope="session")
def note():
    """note(text): a line for the end of the report, such as how long an answer took."""
    return TIMES.append


def pytest_terminal_summary(terminalreporter):
    for line in TIMES:
        terminalreporter.write_line(line)
