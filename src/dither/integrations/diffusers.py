"""Quantization backend of diffusers: ``import dither; DiffusionPipeline.from_pretrained(folder)``.

``register`` puts two classes into diffusers' tables; diffusers then finds ``"quant_method": "dither"`` in a component's
``config.json`` and calls, in this order:

    maybe_update_loaded_keys    which files there are
    preprocess                  check the files (the code that ``checkpoint.load_into`` uses), then empty packed modules
    maybe_update_state_dict     for each file: bit-preserving views, see below
    create_quantized_param      put a packed tensor into its module
    postprocess                 all there, nothing cast

diffusers casts every floating tensor to ``torch_dtype`` before a quantizer sees it; float32 scales would be rounded to
bfloat16 unseen. So they pass through diffusers as int32 views, and are viewed back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import diffusers.quantizers.auto as registry
import torch
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor, nn

from dither.checkpoint import (
    METHOD,
    Header,
    atomic_folder,
    attach,
    check_files,
    check_installed,
    config_of,
    header_from,
    header_of,
    metadata_of,
    opened,
)
from dither.errors import BadCheckpoint, Refused
from dither.models import Adapter, Call, adapter_for
from dither.nn import QActivation, QLinear, install, packed_tensors

__all__ = ["ClockReader", "DitherConfig", "DitherQuantizer", "QuantMethod", "register", "save_pipeline", "stamp"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_AS_INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


class QuantMethod(str, Enum):
    """diffusers reads ``quant_method.value``."""

    DITHER = METHOD


@dataclass(frozen=True)
class ClockReader:
    """Reads noise level and branch of a denoiser call the way the model's family does."""

    adapter: Adapter
    model: nn.Module

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Normalized noise level (B,) and branch (B,)."""
        call = Call(args, kwargs)
        return self.adapter.noise_level(self.model, call), self.adapter.branch(self.model, call)


class DitherConfig(QuantizationConfigMixin):
    """The header of a checkpoint, in diffusers' clothes."""

    def __init__(self, header: Header) -> None:
        self.quant_method = QuantMethod.DITHER  # type: ignore[assignment]  # diffusers' enum is closed
        self.header = header

    @classmethod
    def from_dict(cls, config_dict: Any, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """From the ``quantization_config`` of a ``config.json``. Raises BadCheckpoint."""
        config = cls(header_from(config_dict))
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """JSON, as it is stored."""
        return config_of(self.header)

    def to_diff_dict(self) -> dict[str, Any]:
        """The same: nothing has a default."""
        return self.to_dict()


class DitherQuantizer(DiffusersQuantizer):
    """Loads and saves packed models. It does not quantize: that is ``dither.quantize``, which sees real inputs."""

    requires_calibration = True  # a DitherConfig given for a full-precision model is refused by diffusers
    use_keep_in_fp32_modules = True

    def __init__(self, quantization_config: DitherConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.header = quantization_config.header
        self.files: list[Path] = []
        self.packed: dict[str, torch.dtype] = {}  # name -> dtype of every packed tensor, in this checkpoint

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse what would lose bits: 8-bit floats for the full-precision parts, tensors offloaded to disk."""
        dtype = kwargs.get("torch_dtype")
        if dtype is not None and dtype not in _DTYPES:
            raise Refused(f"torch_dtype {dtype} for the full-precision parts: use float32, bfloat16 or float16")
        places = kwargs.get("device_map")
        if isinstance(places, Mapping) and "disk" in places.values():
            raise Refused("packed layers cannot be offloaded to disk by device_map: they would be cast on the way back")

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype:
        """float32 unless asked otherwise: with None diffusers would cast integers to the skeleton's dtype."""
        return torch_dtype or torch.float32

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: Sequence[Any]) -> list[str]:
        """Remember the files; only safetensors are read."""
        self.files = [Path(file) for file in checkpoint_files]
        if other := [file for file in self.files if file.suffix != ".safetensors"]:
            raise BadCheckpoint(f"'{other[0]}' is not a safetensors file; dither reads no other kind")
        return loaded_keys

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        if not self.files:  # from_single_file, or a diffusers without the hooks that keep scales in float32
            raise Refused("load packed models with from_pretrained of a folder, and diffusers 0.39 or newer")
        plan = self.header.plan
        ignore = type(model)._keys_to_ignore_on_load_unexpected or ()  # type: ignore[attr-defined]
        with opened(self.files) as reader:
            check_files(reader, model, plan, required=False, ignore=ignore)
        install(model, plan, ClockReader(adapter_for(model), model), device="meta")
        self.packed = {name: tensor.dtype for name, tensor in packed_tensors(model).items()}

    def maybe_update_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Floating tensors of packed layers as integers, which nobody casts."""
        views = {
            k: state_dict[k].view(_AS_INTEGERS[v])
            for k, v in self.packed.items()
            if v.is_floating_point and k in state_dict
        }
        return {**state_dict, **views}

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Any, param_name: str, *args: Any, **kwargs: Any
    ) -> bool:
        """Whether the tensor belongs to a packed layer."""
        return param_name in self.packed

    def create_quantized_param(  # type: ignore[override]
        self, model: nn.Module, param_value: Tensor, param_name: str, target_device: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Put the tensor into its layer, in its own dtype again."""
        owner, _, key = param_name.rpartition(".")
        layer = model.get_submodule(owner)
        assert isinstance(layer, QLinear | QActivation)
        layer.load({key: param_value.view(self.packed[param_name]).to(target_device or "cpu")})

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        state = model.state_dict()
        for name, dtype in self.packed.items():
            if state[name].dtype != dtype or state[name].device.type == "meta":
                raise BadCheckpoint(
                    f"tensor '{name}' was cast or lost while loading (offload_state_dict is not supported)"
                )
        attach(model, self.header)

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Any], safe_serialization: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Called by ``save_pretrained``: digests for the metadata of the files."""
        if not safe_serialization:
            raise Refused("a quantized model is saved as safetensors only; leave safe_serialization=True")
        if wrapped := [key.partition(".base_layer.")[0] for key in state_dict if ".base_layer." in key]:
            raise Refused(f"an adapter is attached to layer '{wrapped[0]}': take it off with unload_lora(), then save")
        return state_dict, metadata_of(state_dict, self.header.plan)

    def _dequantize(self, model: nn.Module) -> nn.Module:
        raise Refused(
            "dither does not turn a quantized model back into a full-precision one: load the original instead"
        )

    @property
    def is_serializable(self) -> bool:
        """``save_pretrained`` works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters beside packed layers can be trained."""
        return True

    @property
    def is_compileable(self) -> bool:
        """``torch.compile`` works."""
        return True


def register() -> None:
    """Make diffusers know ``quant_method: dither``; calling it again changes nothing."""
    registry.AUTO_QUANTIZER_MAPPING[METHOD] = DitherQuantizer
    registry.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = DitherConfig


def stamp(model: Any, header: Header) -> None:
    """Make a diffusers model that was quantized in memory one that ``save_pretrained`` can save, as if it had been loaded.

    Raises:
        DitherError: its layers are not quantized as the plan says.
    """
    check_installed(model, header.plan)
    quantizer = DitherQuantizer(DitherConfig(header))
    model.register_to_config(quantization_config=quantizer.quantization_config)
    model.hf_quantizer = quantizer
    model.is_quantized = True
    model.quantization_method = QuantMethod.DITHER
    attach(model, header)


def save_pipeline(pipe_or_model: Any, directory: str | Path, max_shard_size: int | str = "10GB") -> None:
    """``save_pretrained`` of a pipeline or of one model, into a new folder that appears whole or not at all.

    Raises:
        DitherError: the folder is not empty, the disk is full, or there is nothing quantized to save.
    """
    parts = [pipe_or_model] if isinstance(pipe_or_model, nn.Module) else list(pipe_or_model.components.values())
    stamped = [part for part in parts if isinstance(part, nn.Module) and "dither_header" in vars(part)]
    for part in stamped or parts[:1]:
        check_installed(part, header_of(part).plan)
    with atomic_folder(Path(directory)) as folder:
        pipe_or_model.save_pretrained(folder, safe_serialization=True, max_shard_size=max_shard_size)
