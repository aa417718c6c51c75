"""Tables: schemas, ids, fingerprints and committed writes. Needs only numpy and pyarrow."""

from tables.arrays import to_column, to_numpy
from tables.errors import InputError
from tables.ids import file_digest, fingerprint, instance_id, photo_id
from tables.schemas import KEYS, TABLES, schema
from tables.skeleton import QUADRUPED, Skeleton
from tables.splits import splits
from tables.store import Dataset, Files, Lake, check_category, join_rows, unique_rows, write_atomically

__all__ = [
    "KEYS", "QUADRUPED", "TABLES", "Dataset", "Files", "InputError", "Lake", "Skeleton", "check_category",
    "file_digest", "fingerprint", "instance_id", "join_rows", "photo_id", "schema", "splits", "to_column", "to_numpy",
    "unique_rows", "write_atomically",
]  # fmt: skip
