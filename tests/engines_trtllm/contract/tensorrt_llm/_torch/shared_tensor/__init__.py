from tensorrt_llm._torch.shared_tensor.shared_tensor import SharedTensorContainer

__all__ = ["SharedTensorContainer"]
