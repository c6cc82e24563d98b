"""The sweeper that configs/train.yaml names. Hydra finds plug-ins in this namespace package, and
imports it in every program.
"""

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper


class Sweep(Sweeper):
    """Hydra's side of `lcm.runs.sweep`. Of the settings of Hydra's own sweeper it takes `params`,
    the grid of an experiment, from the config.
    """

    def __init__(self, **settings):
        pass

    def setup(self, *, hydra_context, task_function, config):
        self.config = config
        self.loader = hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        """Train what is left of the grid, as `lcm.runs.sweep.sweep` says."""
        # Not above: every program of Hydra's would import torch, which takes seconds.
        from lcm.runs.sweep import sweep

        sweep(self.loader, self.config, arguments, self.launcher)
