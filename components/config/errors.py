"""What is wrong with the settings, said so that the reader can go to the place."""

from __future__ import annotations


class ConfigError(Exception):
    """One line for each problem: ``where: key: what``, where ``where`` is ``file:line:column`` or the override."""
