"""Files that appear whole and on the disk: atomic writes, JSON, manifests of checksums; the recipes that come along."""

from mixerzoo.files.atomic import (
    PARTIAL,
    check_writable,
    named,
    new_directory,
    publish,
    read_bytes,
    remove,
    remove_directory,
    replacing,
    sha256,
    sync,
    sync_tree,
    unfinished,
    unfinished_in,
    write_bytes,
    write_text,
)
from mixerzoo.files.json_files import MOST_LEVELS, deep_line, finite, is_deep, read_object, to_json
from mixerzoo.files.manifest import MANIFEST_FILE, check_files, difference, read_manifest, write_manifest
from mixerzoo.files.shipped import recipes_at_hand

__all__ = [
    "MANIFEST_FILE",
    "MOST_LEVELS",
    "PARTIAL",
    "check_files",
    "check_writable",
    "deep_line",
    "difference",
    "finite",
    "is_deep",
    "named",
    "new_directory",
    "publish",
    "read_bytes",
    "read_manifest",
    "read_object",
    "recipes_at_hand",
    "remove",
    "remove_directory",
    "replacing",
    "sha256",
    "sync",
    "sync_tree",
    "to_json",
    "unfinished",
    "unfinished_in",
    "write_bytes",
    "write_manifest",
    "write_text",
]
