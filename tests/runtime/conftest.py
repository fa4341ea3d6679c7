from tests.servers import etcd, nats

__all__ = ["etcd", "nats"]
