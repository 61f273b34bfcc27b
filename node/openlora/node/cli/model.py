"""`openlora model`: base models, named by their content."""

from pathlib import Path
from typing import Annotated

import typer

from openlora.node import base_model
from openlora.node.cli.output import JsonFlag, Output

app = typer.Typer(help="Fetch base models and check what they are.", no_args_is_help=True)
