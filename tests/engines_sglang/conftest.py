"""The real engine has an environment of its own (`make test-sglang`); without it, only the rest is tested."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("sglang") else ["test_arguments.py", "test_encode.py", "test_gpu.py", "test_stack.py"]
