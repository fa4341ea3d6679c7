"""What stands around every panel: start, discovery, calls to other panels, orderly end."""

from components.runtime.panel import Panel
from components.runtime.peers import Peers

__all__ = ["Panel", "Peers"]
