from tensorrt_llm.executor.executor import CppExecutorError
from tensorrt_llm.executor.utils import RequestError

__all__ = ["CppExecutorError", "RequestError"]
