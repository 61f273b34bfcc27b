"""The ops as Triton kernels, for CUDA devices. They have run under Triton's interpreter alone, and on no device."""
