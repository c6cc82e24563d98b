"""What Hydra itself makes of a command line."""

from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def composed(*overrides):
    """The config of train.py's arguments, resolved, as nested dicts."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        return OmegaConf.to_container(compose("train", overrides=list(overrides)), resolve=True)
