"""The bundled model, for every test that needs one."""

from pathlib import Path

MODEL = Path(__file__).parents[1] / "models" / "tiny-vl"
