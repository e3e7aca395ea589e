"""What the configuration of a peft adapter says: every key is known and either obeyed, without effect, or refused.

A configuration goes in; `PeftSettings` says which modules are adapted, with which rank and scale. Knows no tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from loreloop.protocol.errors import BadRequest

OBEYED = frozenset(
    {
        "peft_type",
        "task_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "target_parameters",
        "init_lora_weights",
    }
)
# Notes, settings of training alone, and settings of initialisations, which have no say once the adapter is trained.
WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "lora_dropout",
        "fan_in_fan_out",  # peft itself takes it for false where a projection is a linear layer, as all are here
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "velora_config",  # another backward pass; the product is the same
        "qalora_group_size",
        "runtime_config",
    }
)
REFUSED: Mapping[str, str] = {
    "bias": "trained biases are not served",
    "modules_to_save": "modules trained in full are not served; merge it all into the base and add that as a model",
    "megatron_config": "adapters of Megatron's layers are not served",
    "trainable_token_indices": "trained token embeddings are not served",
    "use_dora": "DoRA rescales whole weights; merge the adapter into its base and add that as a model",
    "alora_invocation_tokens": "an adapter that begins to act in the midst of a prompt is not served",
    "use_qalora": "pooled inputs are not served",
    "monteclora_config": "adapters that draw at random are not served",
    "layer_replication": "it makes another model of the base",
    "lora_bias": "a bias of B is not served",
    "use_bdlora": "block-diagonal factors are not served",
    "arrow_config": "routing between adapters is not served",
    "kasa_config": "it changes the base weights and scales singular values",
    "ensure_weight_tying": "an adapter of tied embeddings changes the inputs as well",
}
PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
UNDONE_INITS = ("pissa", "olora")
CONVERT = (
    "It changed the base weights in a way that cannot be computed again. Save the adapter once more in peft with "
    "save_pretrained(…, path_initial_model_for_weight_conversion=<the adapter as it was before training>), which makes "
    "an ordinary one of it."
)


@dataclass(frozen=True)
class PeftSettings:
    """The settings of one adapter. A module is named by its path in the base, as peft sees it:
    `model.layers.0.self_attn.q_proj`, `lm_head`."""

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...]
    layers: tuple[int, ...] | None
    layers_pattern: tuple[str, ...]
    target_parameters: tuple[str, ...]
    initialisation: str  # "plain", or one of UNDONE_INITS

    def rank_of(self, path: str) -> int:
        """The rank of a module's adapter: that of the first pattern that fits its path, else the common one."""
        return _by_pattern(self.rank_pattern, path, self.rank)

    def scale_of(self, path: str) -> float:
        """What B · A is multiplied by: α / r, or α / √r with rsLoRA."""
        rank, alpha = self.rank_of(path), _by_pattern(self.alpha_pattern, path, self.alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, path: str) -> bool:
        """Whether peft puts an adapter on this linear layer."""
        # The order of these questions is peft's own.
        if self.exclude_modules and _matches(self.exclude_modules, path):
            return False
        # peft leaves the output layer out of "all-linear".
        if isinstance(self.target_modules, str) and self.target_modules.lower() == "all-linear":
            return path != "lm_head"
        if not _matches(self.target_modules, path):
            return False
        return self.layers is None or isinstance(self.target_modules, str) or self._layer_of(path) in self.layers

    def key_of(self, path: str) -> str | None:
        """By what name peft looks this linear layer up in patterns: as a module, or as a parameter where only
        `target_parameters` name it. None where it puts no adapter there."""
        if self.targets(path):
            return path
        return f"{path}.weight" if self.targets_parameter(f"{path}.weight") else None

    def targets_parameter(self, name: str) -> bool:
        """Whether peft puts an adapter on this parameter of a module that is no linear layer."""
        return _matches(self.target_parameters, name)

    def _layer_of(self, path: str) -> int | None:
        # As in peft: without patterns any name before a number counts as that of a list of layers.
        patterns = [rf"(?:^|.*?\.){each}\.(\d+)\." for each in self.layers_pattern] or [r".*?\.[^.]*\.(\d+)\."]
        found = next((match for match in (re.match(pattern, path) for pattern in patterns) if match), None)
        return int(found[1]) if found else None


def read_settings(config: Mapping[str, Any], where: str) -> PeftSettings:
    """Reads an `adapter_config.json`; BadRequest names the key that cannot be taken over, and says why."""
    _check_keys(config, where)
    if config.get("peft_type") not in ("LORA", None):
        raise BadRequest(f"{where} is of the peft_type {config['peft_type']!r}; only LORA is served.")
    if config.get("task_type") not in ("CAUSAL_LM", None):
        raise BadRequest(f"{where} is for the task {config['task_type']!r}; only CAUSAL_LM is served.")
    initialisation = _initialisation(config.get("init_lora_weights", True), where)
    layers = config.get("layers_to_transform")
    try:
        settings = PeftSettings(
            rank=_rank(config.get("r", 8)),
            alpha=_alpha(config.get("lora_alpha", 8)),
            use_rslora=_switch(config.get("use_rslora")),
            rank_pattern={str(key): _rank(value) for key, value in (config.get("rank_pattern") or {}).items()},
            alpha_pattern={str(key): _alpha(value) for key, value in (config.get("alpha_pattern") or {}).items()},
            target_modules=_names(config.get("target_modules")),
            exclude_modules=_names(config.get("exclude_modules")),
            layers=None
            if layers is None or layers == []
            else tuple(layers if isinstance(layers, list) else [int(layers)]),
            layers_pattern=_tuple(config.get("layers_pattern")),
            target_parameters=_tuple(config.get("target_parameters")),
            initialisation=initialisation,
        )
        # Tried once here, so that a pattern that is no regular expression fails now and under its own name.
        settings.scale_of(""), settings.targets("")
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise BadRequest(f"{where} has a setting of the wrong type: {error}.") from None
    return settings


def _check_keys(config: Mapping[str, Any], where: str) -> None:
    for key, value in config.items():
        # peft writes every setting it knows. One that is off changes nothing, even where it is not known here.
        off = (
            value is None
            or value is False
            or value == "none"
            or (value in ({}, []) and key != "alora_invocation_tokens")
        )
        if key in OBEYED or key in WITHOUT_EFFECT or off:
            continue
        if key in REFUSED:
            raise BadRequest(f"{where} has {key} = {value!r}: {REFUSED[key]}.")
        raise BadRequest(
            f"{where} has the setting {key} = {value!r}, which is not known here; nobody can say what it does."
        )


def _initialisation(value: object, where: str) -> str:
    if value in PLAIN_INITS:
        return "plain"
    if value in UNDONE_INITS:
        return str(value)
    raise BadRequest(f"{where} has init_lora_weights = {value!r}. {CONVERT}")


def _rank(value: object) -> int:
    # In Python a bool is an int, and `true` is no rank.
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"the rank {value!r} is no whole number of 1 or more")
    return value


def _alpha(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"the α {value!r} is no finite number")
    return float(value)


def _switch(value: object) -> bool:
    if not isinstance(value, bool | None):
        raise ValueError(f"{value!r} is neither true nor false")
    return bool(value)


def _names(value: object) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else _tuple(value)


def _tuple(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | None) or any(not isinstance(each, str) for each in value or ()):
        raise ValueError(f"{value!r} is no list of names")
    return tuple(value or ())


def _by_pattern(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    # The first pattern that fits counts, and it must reach the end of the path, as in peft.
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)


def _matches(names: str | Iterable[str], path: str) -> bool:
    """A text is a pattern for the whole path, a list holds ends of paths."""
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)
