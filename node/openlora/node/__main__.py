"""`python -m openlora.node` is the `openlora` command."""

from openlora.node.cli.main import main

main()
