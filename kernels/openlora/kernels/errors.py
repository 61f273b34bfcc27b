"""What the kernels raise on purpose."""


class KernelsUnavailable(Exception):
    """These kernels cannot serve this machine or this model; the message says why in one sentence."""
