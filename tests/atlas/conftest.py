"""The tiny models of the tests of inference."""

from tests.inference.conftest import llama, tiny, tiny_of

__all__ = ["llama", "tiny", "tiny_of"]
