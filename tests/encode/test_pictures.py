"""However many large pictures come at once, memory is that of one and comes back; small ones do not wait."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from components.engines.base import PreparedImage
from components.media import Limits, MediaError
from tests.media.pictures import encoded, picture
from workers.encode.pictures import PictureThreads


class Engine:
    """Large pictures wait at ``open``; counts how many are being prepared."""

    format: Any = None

    def __init__(self) -> None:
        self.open = threading.Event()
        self.large = self.most_large = 0
        self._lock = threading.Lock()

    def prepare(self, image: Image.Image) -> PreparedImage:
        if image.width > 1000:
            with self._lock:
                self.large += 1
                self.most_large = max(self.large, self.most_large)
            self.open.wait()
            with self._lock:
                self.large -= 1
        return PreparedImage(image.size, (1, 1, 1), 1)

    def encode(self, images: Any, slots: Any) -> None: ...

    def warm_up(self) -> None: ...


async def test_large_pictures_go_one_by_one_and_small_ones_pass_them() -> None:
    engine = Engine()
    threads = PictureThreads(engine, Limits())
    large = encoded(picture(2100, 2100))
    waiting = [asyncio.create_task(threads.prepare(large)) for _ in range(8)]
    small = await asyncio.wait_for(threads.prepare(encoded(picture())), 30)
    assert small.pixels == (8, 6)
    assert not any(task.done() for task in waiting)
    engine.open.set()
    await asyncio.gather(*waiting)
    assert engine.most_large == 1
    with pytest.raises(MediaError):
        await threads.prepare(b"no picture")
    threads.close()


MEMORY = """
import asyncio, sys
from pathlib import Path
from components.engines.base import PreparedImage
from components.media import Limits
from tests.media.pictures import encoded, picture
from workers.encode.pictures import PictureThreads

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

class Engine:
    def prepare(self, image):
        return PreparedImage(None, (1, 1, 1), 1)

async def main():
    threads = PictureThreads(Engine(), Limits())
    side = 4000
    pictures = [encoded(picture(side, side).convert(mode), compress_level=1) for mode in ("RGB", "RGBA", "LA", "P")]
    await threads.prepare(encoded(picture()))
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = status("VmRSS")
    await asyncio.gather(*(threads.prepare(data) for data in pictures * 4))
    print((status("VmHWM") - before) / side**2, (status("VmRSS") - before) / side**2)

asyncio.run(main())
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for the peak")
def test_memory_is_that_of_one_large_picture_and_comes_back() -> None:
    """In bytes a pixel: eight for the one being unfolded."""
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", MEMORY], cwd=root, capture_output=True, text=True, check=True)
    peak, kept = map(float, ran.stdout.split())
    assert peak < 10 and kept < 1.5, ran.stdout
