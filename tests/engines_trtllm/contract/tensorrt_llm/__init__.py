"""TensorRT-LLM's interface as far as our adapter uses it: signatures, refusals and habits of releases 1.2 and 1.3.

The real package needs NVIDIA's index and a GPU. This one is strict where the real one is (unknown arguments, request
types, handles) and where the real one would answer wrongly it answers differently, so that a test sees it:
``contract_model`` computes tokens from everything that a real model's tokens hang on. Each file stands where the real
one stands, and ``test_wheel.py`` holds the two against each other.
"""

from tensorrt_llm.disaggregated_params import DisaggregatedParams
from tensorrt_llm.llmapi.llm import LLM
from tensorrt_llm.llmapi.mm_encoder import MultimodalEncoder
from tensorrt_llm.sampling_params import SamplingParams

__version__ = "1.3.0rc29"

__all__ = ["LLM", "DisaggregatedParams", "MultimodalEncoder", "SamplingParams"]
