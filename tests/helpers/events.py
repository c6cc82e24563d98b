"""TensorBoard's events of a run, read back."""

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import metadata


def events(folder):
    """Every (tag, its HParams content, its number) of the one event file of a folder."""
    (file,) = folder.iterdir()
    values = [value for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    return [(value.tag, value.metadata.plugin_data.content, value.tensor) for value in values]


def hparams(folder):
    """The settings of a run, as TensorBoard's page of HParams has them; they are there once."""
    tag = metadata.SESSION_START_INFO_TAG
    (content,) = [content for found, content, _ in events(folder) if found == tag]
    return metadata.parse_session_start_info_plugin_data(content).hparams
