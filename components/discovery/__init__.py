"""Who is there: instances in etcd, each under a lease."""

from components.discovery.registration import Registration
from components.discovery.registry import InstanceTaken, Registry
from components.discovery.view import View
from components.discovery.worker import DiscoveryEnded

__all__ = ["DiscoveryEnded", "InstanceTaken", "Registration", "Registry", "View"]
