"""What pyproject.toml cannot say: the walk goes into the wheel, from its place in the project.

`kdkit lab FOLDER` puts it into a folder again.
"""

import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

WALK = runpy.run_path("kdkit/study/walk.py")["files"](Path())


class BuildWithWalk(build_py):
    def run(self):
        super().run()
        folder = Path(self.build_lib, "kdkit", "assets", "walk")
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier build
        for name in WALK if not self.editable_mode else ():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, folder / name)

    def get_source_files(self):  # of a source distribution
        return [*super().get_source_files(), *WALK]


setup(cmdclass={"build_py": BuildWithWalk})
