"""Metadata are in setup.cfg. Here is what it cannot say: a wheel holds the programs, too.

configs/, launch/, train.py and evaluate.py stand beside the package, where people read and
change them. A wheel carries them as copymit/shipped/, so that site-packages gets no
packages named `configs` and `launch`; copymit/project.py finds them in both places.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# The last two are what launch.doctor compares an environment with.
_SHIPPED = (
    "configs",
    "launch",
    "train.py",
    "evaluate.py",
    "setup.cfg",
    "constraints.txt",
)


class BuildWithPrograms(build_py):
    """Builds the package with the programs in it."""

    def run(self) -> None:
        """Copies them after the modules; an editable installation has the checkout."""
        super().run()
        if self.editable_mode:
            return
        to = Path(self.build_lib, "copymit", "shipped")
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir(parents=True)
        for name in _SHIPPED:
            if Path(name).is_dir():
                hidden = shutil.ignore_patterns("__pycache__", ".*")
                shutil.copytree(name, to / name, ignore=hidden)
            else:
                shutil.copy2(name, to / name)


setup(cmdclass={"build_py": BuildWithPrograms})
