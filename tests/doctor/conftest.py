from tests.servers import shared_etcd, shared_nats

__all__ = ["shared_etcd", "shared_nats"]
