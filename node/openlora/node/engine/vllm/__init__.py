"""vLLM behind the engine's messages: the second engine, for models and machines that outgrow our own.

It runs in vLLM's own environment, which has openlora but none of the agent's needs beside msgspec and gguf.
"""
