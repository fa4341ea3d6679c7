class RequestError(RuntimeError):
    """This request has failed."""
