"""A whole decoder in C++ for the processor at hand, built on first use."""
