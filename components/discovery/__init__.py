"""Who is there: instances in etcd, each under a lease."""

from components.discovery.registration import Registration
from components.discovery.registry import InstanceTaken, Registry
from components.discovery.view import View

__all__ = ["InstanceTaken", "Registration", "Registry", "View"]
