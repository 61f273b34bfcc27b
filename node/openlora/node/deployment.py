"""Which contracts a configuration means."""

from openlora.contracts import Deployment
from openlora.node.config import ChainConfig, small_text
from openlora.node.errors import ConfigError


def load_deployment(config: ChainConfig) -> Deployment:
    """Reads the deployment file. Raises ConfigError when it is missing or malformed."""
    try:
        return Deployment.from_json(small_text(config.deployment))
    except FileNotFoundError:
        raise ConfigError(f"{config.deployment} does not exist; get the deployment file of your network") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{config.deployment} is no deployment file: {error}") from None
