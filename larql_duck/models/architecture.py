"""What transformers makes of a config: its config object, and the causal model without weights."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from larql_duck.errors import ModelError, reason
from larql_duck.models.family import Config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What tqdm says in a notebook without ipywidgets as soon as transformers is imported; its bars are not shown anyway.
warnings.filterwarnings("ignore", "IProgress not found")

# Keys of a stored config that say how somebody ran the model, not what it computes.
_RUNTIME_KEYS = (
    "auto_map",
    "quantization_config",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "torch_dtype",
    "dtype",
    "_name_or_path",
    "output_attentions",
    "output_hidden_states",
    "use_cache",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A context in which transformers prints neither warnings nor progress bars; its settings come back after."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def is_known(model_type: str) -> bool:
    """Whether the installed transformers has configs of this type."""
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def config_object(config: Config, model_type: str) -> Any:
    """transformers' config for these values; ModelError where it takes them for no config of this type."""
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"transformers has no architecture {model_type!r}, so the model cannot run; install a version that knows "
            "it, or make a vindex to browse: larql-duck extract ... --no-probe --in-basis embedding"
        )
    values = {k: _number(v) for k, v in config.items() if k not in _RUNTIME_KEYS}
    with quiet():
        try:
            return CONFIG_MAPPING[model_type].from_dict(values)
        except MemoryError:
            raise
        except Exception as error:
            raise ModelError(f"config.json is not a usable {model_type} config: {reason(error)}") from error


def _number(value: Any) -> Any:
    """A value with the numbers that JSON has no words for, which transformers writes as {"__float__": "Infinity"}."""
    if isinstance(value, dict):
        if set(value) == {"__float__"}:
            return float(value["__float__"])
        return {k: _number(v) for k, v in value.items()}
    return [_number(v) for v in value] if isinstance(value, list) else value


def empty_model(config: Any, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The causal model of transformers' config object on the meta device; ModelError where none can be built."""
    from transformers import AutoModelForCausalLM

    with quiet():
        try:
            with torch.device("meta"):
                model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
        except MemoryError:
            raise
        except Exception as error:
            raise ModelError(
                f"transformers cannot build model_type {config.model_type!r} from this config: {reason(error)}"
            ) from error
    return model
