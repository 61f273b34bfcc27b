"""What an adapter's configuration means for one base model, as PEFT reads it. Every function raises AdapterError."""

from collections.abc import Container, Iterator
from typing import Final

from openlora.node.adapters.config import CONFIG_FILE, AdapterConfig, names
from openlora.node.adapters.modules import HEAD, EmbeddingShape, Layout, LinearShape, NormShape
from openlora.node.errors import AdapterError
from openlora.node.malformed import quote

_TOKENS: Final = f"{CONFIG_FILE}: trainable_token_indices"


def saved_modules(config: AdapterConfig, layout: Layout) -> Layout:
    """The modules whose whole weights the adapter brings. A name of none is passed over."""
    blocks = _blocks(layout)
    for name in config.modules_to_save:
        if any(block.endswith(name) for block in blocks):
            raise AdapterError(
                f"{CONFIG_FILE}: modules_to_save names {quote(name)}, but this base model's linear layers, "
                "embedding and norms without a bias can be replaced"
            )
    tied = tied_ends(layout) if config.ties(config.modules_to_save) else ()
    return {module: shape for module, shape in layout.items() if config.replaces(module) or module in tied}


def targeted_modules(config: AdapterConfig, layout: Layout, saved: Layout) -> dict[str, LinearShape | EmbeddingShape]:
    """The layers that get A and B. A name of no module is passed over if another names a layer."""
    fit = {module: shape for module, shape in layout.items() if not isinstance(shape, NormShape)}
    others = {tail for module in (layout.keys() - fit.keys()) | _blocks(layout) for tail in _tails(module)}
    for name in config.target_modules or ():
        if name in others:
            raise AdapterError(f"{CONFIG_FILE}: target_modules names {quote(name)}, which is no linear layer")
    if config.target_modules is None:
        fit = {module: shape for module, shape in fit.items() if isinstance(shape, LinearShape) and module != HEAD}
    tied = tied_ends(layout) if config.ties(config.target_modules or ()) else ()
    meant = {module: shape for module, shape in fit.items() if config.targets(module) or module in tied}
    modules = {module: shape for module, shape in meant.items() if module not in saved}
    if not modules:
        raise AdapterError(
            f"{CONFIG_FILE}: target_modules and what excludes from them leave no linear layer of this base model"
        )
    return modules


def trained_tokens(
    config: AdapterConfig, layout: Layout, otherwise: Container[str]
) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Whose rows the adapter brings, by the modules that have them in common; those of `otherwise` are changed in other
    ways. A tied head follows the embedding, unless its own tokens are given and others."""
    if not config.trained_tokens:
        return {}
    embeddings = [(module, shape) for module, shape in layout.items() if isinstance(shape, EmbeddingShape)]
    if not embeddings:
        raise AdapterError(f"{_TOKENS} is given, but this base model's embedding cannot be changed")
    ((embedding, shape),) = embeddings
    found: dict[str, tuple[int, ...]] = {}
    for name, tokens in config.trained_tokens.items():
        module = embedding if not name or names(name, embedding) else name
        if module in found or module not in (embedding, HEAD):
            raise AdapterError(f"{_TOKENS} names {quote(name)}, but {embedding} and {HEAD} can be named, each once")
        if max(tokens) > (last := shape.in_features - 1):
            raise AdapterError(f"{_TOKENS} holds {max(tokens)}, but this base model's last token is {last}")
        found[module] = tokens
    meant: dict[tuple[str, ...], tuple[int, ...]] = {(module,): tokens for module, tokens in found.items()}
    if shape.tied and embedding in found and found.get(HEAD, found[embedding]) == found[embedding]:
        meant = {(embedding, HEAD): found[embedding]}
    for changed in (module for modules in meant for module in modules):
        if changed in otherwise:
            raise AdapterError(f"{_TOKENS} changes {changed}, and so does another key; keep one of them")
    return meant


def tied_ends(layout: Layout) -> tuple[str, ...]:
    """The embedding and the head, where they are one weight."""
    tied = (module for module, shape in layout.items() if isinstance(shape, EmbeddingShape) and shape.tied)
    return tuple(end for module in tied for end in (module, HEAD))


def _blocks(layout: Layout) -> set[str]:
    """The modules that the layout's own stand in: "model.layers.0.mlp" and the like."""
    return {module[:end] for module in layout for end, letter in enumerate(module) if letter == "."}


def _tails(module: str) -> Iterator[str]:
    """All literal names that name it."""
    yield module
    yield from (module[start + 1 :] for start, letter in enumerate(module) if letter == ".")
