"""The engine's numerical operations: defined in `reference`, called through `ops`."""
