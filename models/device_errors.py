"""What an error says of the device that raised it. Needs nothing."""

from __future__ import annotations


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, torch or onnxruntime says that memory ran out.

    Torch raises an error of its own on a GPU alone: on a CPU it is a RuntimeError of its allocator.
    """
    text = f"{type(error).__name__}: {error}".lower()
    return isinstance(error, MemoryError) or any(words in text for words in ("outofmemory", "out of memory", "alloc"))


def device_broke(error: BaseException) -> bool:
    """Whether a CUDA error stays until its process ends: each further call raises it again, whatever it is given."""
    return "cuda error" in str(error).lower() and not out_of_memory(error)
