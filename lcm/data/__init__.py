"""Data sets: `Digits`, `Cifar`, `class_folders`, built from the keys of a file in configs/data."""

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from lcm.data.cifar import Cifar
from lcm.data.digits import Digits
from lcm.data.folder import class_folders
from lcm.errors import UserError

__all__ = ["Cifar", "Digits", "build_data", "class_folders"]


def build_data(config):
    """The data set of a config `data` (a plain dict): its `_target_`, called with the other keys.

    Raises UserError where there is no such target; errors of the data set's own code pass through.
    """
    try:
        # A partial, called here: Hydra would wrap what the data set itself raises. Not
        # recursive: a `_target_` inside a value, of a stranger's run.json, is never called.
        return instantiate(config, _partial_=True, _recursive_=False, _convert_="all")()
    except InstantiationException as error:
        # Hydra's own text only advises HYDRA_FULL_ERROR=1; its cause names what is missing.
        reason = " ".join(str(error.__cause__ or "").split()) or str(error).splitlines()[0]
        raise UserError(f"data={config['name']}: {reason}") from error
