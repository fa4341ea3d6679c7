from tests.servers import etcd, nats, shared_etcd, shared_nats

__all__ = ["etcd", "nats", "shared_etcd", "shared_nats"]
