from enum import Enum

from torchvision import __getattr__ as __getattr__


class InterpolationMode(Enum):
    """Compared and mapped by transformers at import; the values are torchvision's public ones."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"
