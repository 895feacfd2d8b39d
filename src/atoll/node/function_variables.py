"""The variables of every function that lead libraries to directories on its volume."""

from __future__ import annotations

CACHE_VARIABLES = {
    "XDG_CACHE_HOME": "/data/.cache",
    "HF_HOME": "/data/.cache/huggingface",
    "TORCH_HOME": "/data/.cache/torch",
    "KERAS_HOME": "/data/.cache/keras",
    "NLTK_DATA": "/data/.cache/nltk",
    "TFHUB_CACHE_DIR": "/data/.cache/tfhub",
    "SENTENCE_TRANSFORMERS_HOME": "/data/.cache/sentence_transformers",
    "MPLCONFIGDIR": "/data/.cache/matplotlib",
    "PIP_CACHE_DIR": "/data/.cache/pip",
    "UV_CACHE_DIR": "/data/.cache/uv",
    "TRITON_CACHE_DIR": "/data/.cache/triton",
    "TORCHINDUCTOR_CACHE_DIR": "/data/.cache/torchinductor",
}
"""Directories of libraries' downloads and compiled code, on the volume so that the next call finds them."""
