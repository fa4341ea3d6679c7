"""Starts the processor alone: ``python -m processor``."""

from components.cli.role import main

if __name__ == "__main__":
    main("processor")
