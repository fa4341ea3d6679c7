"""Not vLLM: the name that SGLang imports on a device that is neither CUDA, HIP nor XPU. See ``../README.md``."""
