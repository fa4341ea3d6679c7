from tests.servers import etcd

__all__ = ["etcd"]
