"""Not torchvision: names to import, nothing that works. See ``../README.md``."""

__version__ = "0.28.0"  # read by transformers; its real packages come with a torch of their own


def __getattr__(name: str) -> type:
    """Any public name, as a class that cannot be made an object of. The submodules use it too."""
    if name.startswith("__"):
        raise AttributeError(name)

    def refuse(self: object, *args: object, **kwargs: object) -> None:
        raise NotImplementedError(f"this torchvision is a stand-in: {name} does nothing")

    return type(name, (), {"__init__": refuse})
