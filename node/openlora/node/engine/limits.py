"""What an engine may use."""

from dataclasses import dataclass

from openlora.node.errors import ConfigError


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """The defaults suit a small model on one CPU."""

    kv_tokens: int = 65_536  # capacity of the paged cache
    page_tokens: int = 16
    max_batch_tokens: int = 512  # rows of one forward pass
    max_running: int = 64  # sequences that hold pages
    max_waiting: int = 2_048  # of which a tenant has at most as many as remain free: half, if it is alone
    max_waiting_tokens: int = 2_097_152  # of all waiting prompts; one tenant as above
    max_adapters: int = 16  # in one request's recipe
    adapter_bytes: int = 2 << 30  # of all adapters, those kept for running requests included
    prefix_cache: bool = True  # requests of one tenant that begin alike share what was computed for the beginning
    speculation: bool = True  # tokens that a request's own text suggests are computed ahead, where that is exact

    @property
    def pages(self) -> int:
        return self.kv_tokens // self.page_tokens

    def __post_init__(self) -> None:
        switches = ("prefix_cache", "speculation")
        wrong = [name for name in self.__slots__ if name not in switches and getattr(self, name) < 1]
        if wrong:
            raise ConfigError(f"engine limits must be positive: {', '.join(wrong)}")
        if self.max_running > self.max_batch_tokens:
            raise ConfigError("max_running exceeds max_batch_tokens: some running requests would never get a token")
        if self.kv_tokens < self.page_tokens:
            raise ConfigError("kv_tokens is less than one page")
