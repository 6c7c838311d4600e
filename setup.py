# ruff: noqa: D102
"""Puts ``configs/`` into wheels, as ``protoseg/configs``; everything else is in pyproject.toml.

A mapping of folders there would do it only if every package were listed by hand: the search for packages does
not find a folder that lies elsewhere. An editable installation reads ``configs/`` where it is.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FILES = sorted(path.as_posix() for path in Path("configs").rglob("*.yaml"))


class BuildWithConfigs(build_py):
    """Builds the packages, and copies the configurations beside them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._pairs():
                self.mkpath(str(target.parent))
                self.copy_file(source, str(target))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *(str(target) for _, target in self._pairs())]

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *FILES]

    def _pairs(self) -> list[tuple[str, Path]]:
        return [(source, Path(self.build_lib, "protoseg", source)) for source in FILES]


setup(cmdclass={"build_py": BuildWithConfigs})
