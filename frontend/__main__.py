"""Starts the frontend alone: ``python -m frontend``."""

from components.cli.role import main

if __name__ == "__main__":
    main("frontend")
