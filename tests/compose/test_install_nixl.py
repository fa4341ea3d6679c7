"""container/install_nixl.sh with a stand-in for UCX's source: what it accepts, what it refuses, and that it says why.

The whole of it is not run here: it takes UCX and NIXL from their own repositories, and a quarter of an hour.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from components.config.topology import REPOSITORY

SCRIPT = REPOSITORY / "container/install_nixl.sh"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the script wants root: run pytest as root")

STAND_INS = {
    "apt-get": "exit 0",
    "sleep": "exit 0",
    # What a library needs is written in it.
    "ldd": 'cat "$1"',
}
CONFIGURE = """#!/bin/sh
printf '%s\\n' "$@" > "$ASKED"
for each in "$@"; do case $each in --prefix=*) prefix=${each#--prefix=};; esac; done
cat > Makefile <<MAKE
all:
install-strip:
	mkdir -p $prefix
	cp -r built/. $prefix
MAKE
"""
INFO = "#!/bin/sh\nprintf '# Library version: 1.22.0\\n#define ENABLE_MT %s\\n#define HAVE_IBV_DM %s\\n'\n"


@dataclass
class Source:
    """A repository that builds into what its ``built`` folder holds."""

    folder: Path
    prefix: Path
    stand_ins: dict[str, str] = field(default_factory=lambda: dict(STAND_INS))

    def write(self, path: str, text: str) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)

    def commit(self) -> str:
        def git(*arguments: str) -> str:
            who = ("-c", "user.name=t", "-c", "user.email=t@localhost")
            command = ["git", "-C", str(self.folder), *who, *arguments]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

        git("init", "--quiet")
        git("add", "--all")
        git("commit", "--quiet", "-m", "built")
        return git("rev-parse", "HEAD")

    def install(self, commit: str) -> subprocess.CompletedProcess[str]:
        programs = self.prefix.parent / "programs"
        programs.mkdir(exist_ok=True)
        for name, text in self.stand_ins.items():
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)
        environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "UCX_SOURCE": str(self.folder),
            "UCX_COMMIT": commit,
            "PREFIX": str(self.prefix),
            "WITH_CUDA": "no",
            "ASKED": str(self.prefix.parent / "asked"),
        }
        return subprocess.run([SCRIPT, "--only", "ucx"], env=environment, capture_output=True, text=True, timeout=60)

    @property
    def asked(self) -> set[str]:
        return set((self.prefix.parent / "asked").read_text().split())


@pytest.fixture
def source(tmp_path: Path) -> Source:
    made = Source(tmp_path / "source", tmp_path / "prefix")
    made.write("autogen.sh", "#!/bin/sh\n")
    made.write("contrib/configure-release-mt", CONFIGURE)
    made.write("built/bin/ucx_info", INFO.replace("\\n'\n", "\\n' 1 1\n"))
    for name in ("libuct_ib", "libuct_rdmacm", "libuct_cma"):
        made.write(f"built/lib/ucx/{name}.so", "libc.so.6 => /lib/libc.so.6\n")
    return made


def test_what_was_asked_for_and_is_there(source: Source) -> None:
    done = source.install(source.commit())
    assert done.returncode == 0, done.stderr
    assert "UCX: # Library version: 1.22.0" in done.stdout
    assert source.asked >= {"--with-verbs", "--with-rdmacm", "--with-dm", "--enable-cma", "--with-cuda=no"}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_machine_that_it_builds_for(machine: str, source: Source) -> None:
    source.stand_ins["uname"] = f"echo {machine}"
    assert source.install(source.commit()).returncode == 0


def test_another_machine(source: Source) -> None:
    source.stand_ins["uname"] = "echo riscv64"
    done = source.install(source.commit())
    assert (done.returncode, done.stdout) == (1, "")
    assert "no build for riscv64" in done.stderr


@pytest.mark.parametrize(
    ("path", "text", "says"),
    [
        ("built/bin/ucx_info", INFO.replace("\\n'\n", "\\n' 0 1\n"), "without multi-threading"),
        ("built/bin/ucx_info", INFO.replace("\\n'\n", "\\n' 1 0\n"), "without device memory"),
        ("built/bin/ucx_info", "#!/bin/sh\nexit 127\n", "UCX does not load"),
        ("built/lib/ucx/libuct_ib.so", "libibverbs.so.1 => not found\n", "libuct_ib does not load"),
    ],
)
def test_a_build_that_lacks_something(path: str, text: str, says: str, source: Source) -> None:
    source.write(path, text)
    done = source.install(source.commit())
    assert done.returncode == 1
    assert says in done.stderr


@pytest.mark.parametrize("name", ["libuct_ib", "libuct_rdmacm", "libuct_cma"])
def test_a_build_without_a_transport(name: str, source: Source) -> None:
    (source.folder / f"built/lib/ucx/{name}.so").unlink()
    done = source.install(source.commit())
    assert done.returncode == 1
    assert f"built without {name}" in done.stderr


def test_a_source_that_has_another_commit(source: Source) -> None:
    source.commit()
    done = source.install("0" * 39 + "1")
    assert done.returncode == 1
    assert "cannot fetch" in done.stderr
    assert "not a full commit id" in source.install("v1.22.0").stderr
    assert not source.prefix.exists()


def test_a_source_that_was_tampered_with(source: Source) -> None:
    """The commit has the right name, and one of its files another content."""
    commit = source.commit()
    objects = source.folder / ".git/objects"
    names = {}
    for path in ("autogen.sh", "built/bin/ucx_info"):
        command = ["git", "-C", str(source.folder), "rev-parse", f"HEAD:{path}"]
        name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        names[path] = objects / name[:2] / name[2:]
    names["autogen.sh"].chmod(0o644)
    names["autogen.sh"].write_bytes(names["built/bin/ucx_info"].read_bytes())
    done = source.install(commit)
    assert done.returncode != 0
    assert not source.prefix.exists()
