"""Gets the browser that its tests need, where it can: `python tests/ui/install.py`.

As root on Debian or Ubuntu a Chromium by apt-get. If it stays missing, why is one line on standard
output, and the exit code is 1.
"""

import os
import shutil
import subprocess
import sys

CHROMIUM = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
APT = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=120"]


def run(*command: str) -> str:
    """What the command's last line was if it failed, else nothing."""
    done = subprocess.run(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
    said = done.stdout.strip().splitlines() or [f"exit code {done.returncode}"]
    return said[-1] if done.returncode else ""


def browser() -> str:
    """Why there is no Chromium, or nothing."""
    if any(map(shutil.which, (os.environ.get("KDKIT_CHROMIUM") or "chromium", *CHROMIUM))):
        return ""
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return "no Chromium, which only root on Debian or Ubuntu gets here by itself"
    run(*APT, "update")
    for name in ("chromium-headless-shell", "chromium"):
        why = run(*APT, "install", "--no-install-recommends", name)
        if not why:
            return ""
    return f"apt-get cannot install Chromium: {why}"


if __name__ == "__main__":
    why = browser()
    print(why, end="")
    sys.exit(bool(why))
