"""Weights and configurations on the disk: ours and other projects', and what else lies beside them."""

from mixerzoo.checkpoints.card import CARD_FILE, model_card
from mixerzoo.checkpoints.config_json import CARRIED_KEYS, HF_KEYS, own_config, read_own
from mixerzoo.checkpoints.directory import COMPANIONS, check_new, copy_companions, find_companions, new_directory
from mixerzoo.checkpoints.foreign_config import records_k_norm
from mixerzoo.checkpoints.layout import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, is_file, read_json, weights_fingerprint
from mixerzoo.checkpoints.load import (
    check_k_norm,
    check_key_norms,
    decoder_of_tensors,
    is_finite,
    load_checkpoint,
    load_config,
)
from mixerzoo.checkpoints.save import save_checkpoint, save_configuration, save_weights, write_shim

__all__ = [
    "CARD_FILE",
    "CARRIED_KEYS",
    "COMPANIONS",
    "CONFIG_FILE",
    "HF_KEYS",
    "INDEX_FILE",
    "WEIGHTS_FILE",
    "check_k_norm",
    "check_key_norms",
    "check_new",
    "copy_companions",
    "decoder_of_tensors",
    "find_companions",
    "is_file",
    "is_finite",
    "load_checkpoint",
    "load_config",
    "model_card",
    "new_directory",
    "own_config",
    "read_json",
    "read_own",
    "records_k_norm",
    "save_checkpoint",
    "save_configuration",
    "save_weights",
    "weights_fingerprint",
    "write_shim",
]
