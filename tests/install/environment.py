"""An environment as ``make install`` makes it, in a second: links to what it would install, and to nothing else."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRA = "transformers"
"""What ``make install`` installs beside the package's own dependencies."""


def distributions() -> dict[str, metadata.Distribution]:
    """The package and all that it requires, by canonical name, as they are installed here."""
    found: dict[str, metadata.Distribution] = {}
    _add("triptych", [EXTRA], found)
    return found


def _add(name: str, extras: Sequence[str], found: dict[str, metadata.Distribution]) -> None:
    distribution = metadata.distribution(name)
    found[canonicalize_name(name)] = distribution
    for line in distribution.requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in (*extras, "")):
            continue
        if canonicalize_name(requirement.name) not in found or requirement.extras:
            _add(requirement.name, sorted(requirement.extras), found)


def make(folder: Path) -> Path:
    """A virtual environment in ``folder``; returns its Python. The checkout itself comes by ``PYTHONPATH``."""
    venv.create(folder, symlinks=True, with_pip=False)
    packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    for distribution in distributions().values():
        for file in distribution.files or ():
            if file.parts[0] == "..":  # a program
                place = Path(os.path.normpath(str(distribution.locate_file(file))))
                link = folder / "bin" / place.name
            else:
                place = Path(str(distribution.locate_file(file.parts[0])))
                link = packages / file.parts[0]
            # A .pth file would bring in the checkout that the package was installed from, whichever that is.
            if not link.exists() and file.parts[0] != "__pycache__" and place.suffix != ".pth":
                link.symlink_to(place)
    return folder / "bin" / "python"
