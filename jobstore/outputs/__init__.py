"""Large texts outside of the database: made durable before a row names them, in a folder or in object storage."""

from jobstore.outputs.base import MAX_OUTPUT_BYTES, SWEEP_AGE, Kind, OutputFile, Outputs
from jobstore.outputs.folder import FolderOutputs
from jobstore.outputs.places import Place, open_outputs, place_of, unchecked_outputs
from jobstore.outputs.reading import TextDecoder, check_whole
from jobstore.outputs.writer import OutputWriter

__all__ = [
    "MAX_OUTPUT_BYTES",
    "SWEEP_AGE",
    "FolderOutputs",
    "Kind",
    "OutputFile",
    "OutputWriter",
    "Outputs",
    "Place",
    "TextDecoder",
    "check_whole",
    "open_outputs",
    "place_of",
    "unchecked_outputs",
]
