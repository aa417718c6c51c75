"""Tables: schemas, ids, fingerprints and committed writes. Needs only numpy and pyarrow."""

from tables.arrays import to_column, to_numpy
from tables.errors import InputError
from tables.files import Files, locate, read_file, write_atomically
from tables.ids import file_digest, fingerprint, instance_id, photo_id
from tables.schemas import KEYS, TABLES, schema
from tables.skeleton import QUADRUPED, Skeleton
from tables.splits import splits
from tables.store import Dataset, Lake, check_category, join_rows, unique_rows

__all__ = [
    "KEYS", "QUADRUPED", "TABLES", "Dataset", "Files", "InputError", "Lake", "Skeleton", "check_category",
    "file_digest", "fingerprint", "instance_id", "join_rows", "locate", "photo_id", "read_file", "schema", "splits",
    "to_column", "to_numpy", "unique_rows", "write_atomically",
]  # fmt: skip
