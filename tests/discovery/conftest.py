from tests.servers import etcd, shared_etcd

__all__ = ["etcd", "shared_etcd"]
