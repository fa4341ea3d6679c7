from tensorrt_llm.disaggregated_params import DisaggregatedParams
from tensorrt_llm.llmapi.llm import LLM
from tensorrt_llm.llmapi.llm_args import CacheTransceiverConfig, KvCacheConfig
from tensorrt_llm.llmapi.mm_encoder import MultimodalEncoder
from tensorrt_llm.sampling_params import SamplingParams

__all__ = [
    "LLM",
    "CacheTransceiverConfig",
    "DisaggregatedParams",
    "KvCacheConfig",
    "MultimodalEncoder",
    "SamplingParams",
]
