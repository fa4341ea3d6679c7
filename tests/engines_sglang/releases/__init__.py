"""The names of the arguments of ``sglang.ServerArgs`` in each release that we say works, one a line.

From a wheel: the annotated names of the class ``ServerArgs`` in ``sglang/srt/server_args.py``.
"""

from pathlib import Path

RELEASES = ("0.5.17", "0.5.23")


def names(release: str) -> set[str]:
    return set((Path(__file__).parent / f"{release}.txt").read_text(encoding="utf-8").split())
