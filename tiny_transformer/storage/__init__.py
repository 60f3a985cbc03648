"""Directories that appear whole or not at all: publishing, manifests, the run lock, the step log.

Standard library only; importing it is cheap. The order of a save and the reason for each step are in `commit`. The
independent checker is `tiny_transformer.storage.doctor`, which shares no code with what is here.
"""

from tiny_transformer.storage.commit import Staging, atomic_write, publish
from tiny_transformer.storage.fs import REAL, Fs
from tiny_transformer.storage.lock import RunLock
from tiny_transformer.storage.manifest import Manifest, read_manifest, verify
from tiny_transformer.storage.runs import Checkpoint, RunDirectory
from tiny_transformer.storage.step_log import StepLog, read_log

__all__ = [
    "REAL",
    "Checkpoint",
    "Fs",
    "Manifest",
    "RunDirectory",
    "RunLock",
    "Staging",
    "StepLog",
    "atomic_write",
    "publish",
    "read_log",
    "read_manifest",
    "verify",
]
