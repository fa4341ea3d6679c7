class CppExecutorError(RuntimeError):
    """The engine is gone."""
