"""The globals that the pickle of a torch file may name, and their stand-ins: nothing is imported.

A state dict names storages and the functions that make tensors of them. Training loops store other
values beside it: optimizers, random states, arguments. Names of known harmless classes stand for
values that are not kept; all other names are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cgconvert.model.dtype import TORCH_DTYPES, UINT8, DType

__all__ = ["INERT", "Call", "InertClass", "RefusedError", "Storage", "View", "find_global"]

MAX_DIMENSIONS = 8
MAX_ARGUMENTS = 8
MAX_ELEMENTS = 1 << 48

STORAGES = {
    "DoubleStorage": TORCH_DTYPES["float64"],
    "FloatStorage": TORCH_DTYPES["float32"],
    "HalfStorage": TORCH_DTYPES["float16"],
    "BFloat16Storage": TORCH_DTYPES["bfloat16"],
    "LongStorage": TORCH_DTYPES["int64"],
    "IntStorage": TORCH_DTYPES["int32"],
    "ShortStorage": TORCH_DTYPES["int16"],
    "CharStorage": TORCH_DTYPES["int8"],
    "ByteStorage": TORCH_DTYPES["uint8"],
    "BoolStorage": TORCH_DTYPES["bool"],
    "ComplexFloatStorage": TORCH_DTYPES["complex64"],
    "ComplexDoubleStorage": TORCH_DTYPES["complex128"],
}


class RefusedError(Exception):
    """The pickle is not that of a state dict; the message gives the reason, not the file's name."""


@dataclass(frozen=True)
class Storage:
    """The numbers in one archive member: `count` of type `dtype`. `key` is the member's name."""

    key: str
    dtype: DType
    count: int


@dataclass(frozen=True)
class View:
    """A tensor: a part of a storage, with offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """The stand-in for a function or class: `build` is called with the pickle's arguments."""

    build: Callable[..., Any]


@dataclass(frozen=True)
class InertClass:
    """The stand-in for a harmless class or function; what it makes is `INERT`.

    `counts` has the numbers of arguments with which it may be called; None stands for any.
    """

    name: str
    counts: tuple[int, ...] | None = None

    def check(self, arguments: tuple[Any, ...]) -> None:
        """Raise RefusedError if the class is never pickled with so many arguments."""
        if self.counts is not None and len(arguments) not in self.counts:
            raise RefusedError(
                f"refused: its pickle calls {self.name} with {len(arguments)} arguments"
            )


class _Inert:
    """A value that is not kept."""


INERT = _Inert()
"""Stands for every value of a harmless class."""


QUANTIZERS: Mapping[str, str] = {
    "torchao.": "torchao",
    "bitsandbytes.": "bitsandbytes",
    "optimum.quanto.": "quanto",
    "quanto.": "quanto",
    "hqq.": "hqq",
    "torch.ao.": "torch.ao",
    "torch._utils._rebuild_qtensor": "torch.ao",
    "torch.QInt": "torch.ao",
    "torch.QUInt": "torch.ao",
}
"""Libraries by the beginning of the names that their quantized tensors have in a pickle."""


def find_global(name: str) -> Any:
    """Return what stands for a global, "module name". Raises RefusedError for unknown ones."""
    if name in _GLOBALS:
        return _GLOBALS[name]
    label = name.replace(" ", ".")[:200]
    if label.startswith(("transformers.models.", "torch.nn.modules.")):
        raise RefusedError(
            f"refused: its pickle asks for {label}: it holds a whole model and not its state dict; "
            "where it was made, save model.state_dict()"
        )
    if method := next((m for start, m in QUANTIZERS.items() if label.startswith(start)), None):
        raise RefusedError(
            f"is quantized ({method}): its pickle asks for {label}; convert the original weights, "
            "or dequantize them first with the library that quantized them"
        )
    raise RefusedError(
        f"refused: its pickle asks for {label}, which is not part of a tensor; where the file "
        "was made, save the state dict alone"
    )


@dataclass(frozen=True)
class _Type:
    """The stand-in for a type of numbers, which is not that of a storage."""

    dtype: DType


_UNTYPED = _Type(UINT8)
"""The stand-in for a storage of bytes, whose type of numbers follows in `_typed_tensor`."""

_TENSOR_CLASS = InertClass("torch.Tensor", ())


def storage(persistent_id: Any) -> Storage:
    """Read torch's persistent id ("storage", type, key, device, count). Raises ValueError."""
    if type(persistent_id) is not tuple or len(persistent_id) != 5:
        raise ValueError("a storage described in an unknown way")
    kind, dtype, key, _, count = persistent_id
    if dtype is _UNTYPED:
        dtype = UINT8
    if (
        kind != "storage"
        or not isinstance(dtype, DType)
        or not isinstance(key, str)
        or type(count) is not int
        or not 0 <= count < MAX_ELEMENTS
    ):
        raise ValueError("a storage described in an unknown way")
    return Storage(key, dtype, count)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> View:
    """Stand in for torch._utils._rebuild_tensor and _rebuild_tensor_v2."""
    if not isinstance(storage, Storage) or type(shape) is not tuple or type(stride) is not tuple:
        raise ValueError("a tensor without a storage")
    if len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {len(shape)} dimensions and {len(stride)} strides")
    if not all(type(n) is int and 0 <= n < MAX_ELEMENTS for n in (offset, *shape, *stride)):
        raise ValueError("a tensor of an impossible shape")
    return View(storage, offset, shape, stride)


def _typed_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> View:
    """Stand in for torch._utils._rebuild_tensor_v3, whose storage is of bytes."""
    dtype = rest[2] if len(rest) > 2 else None
    if not isinstance(storage, Storage) or not isinstance(dtype, _Type):
        raise ValueError("a tensor without a type")
    if storage.count % dtype.dtype.itemsize:
        raise ValueError("a storage of half a number")
    count = storage.count // dtype.dtype.itemsize
    return _tensor(replace(storage, dtype=dtype.dtype, count=count), offset, shape, stride)


def _with_attributes(function: Any, cls: Any, arguments: Any, *_: Any) -> View:
    """Stand in for torch._tensor._rebuild_from_type_v2: a tensor whose attributes are not kept.

    `function` makes a plain tensor from `arguments`, and `cls` has to be that of plain tensors.
    """
    is_rebuilt = isinstance(function, Call) and function.build in (_tensor, _typed_tensor)
    if not is_rebuilt or type(arguments) is not tuple or cls is not _TENSOR_CLASS:
        raise RefusedError("refused: its pickle makes a tensor of an unknown class")
    if len(arguments) > MAX_ARGUMENTS:
        raise ValueError(f"{len(arguments)} arguments")
    view: View = function.build(*arguments)
    return view


def _without_data(*_: Any) -> View:
    """Stand in for torch._utils._rebuild_meta_tensor_no_storage."""
    raise RefusedError("has tensors without data (of the device meta); save it after loading")


def _ordered_dict(*arguments: Any) -> dict[str, Any]:
    """Stand in for OrderedDict without arguments; its items are set by later opcodes."""
    if arguments:
        raise ValueError("a dictionary made of something")
    return {}


def _default_dict(*arguments: Any) -> dict[str, Any]:
    """Stand in for defaultdict; its items are set by later opcodes."""
    if len(arguments) > 1:
        raise ValueError("a dictionary made of something")
    return {}


def _size(*arguments: Any) -> tuple[Any, ...]:
    """Stand in for torch.Size, a tuple."""
    if len(arguments) != 1 or type(arguments[0]) is not tuple:
        raise ValueError("a size that is no tuple")
    return arguments[0]


HARMLESS: Mapping[str, tuple[str, ...]] = {
    "argparse": ("Namespace",),
    "types": ("SimpleNamespace",),
    "collections": ("Counter", "deque"),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "pathlib": ("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
    "pathlib._local": ("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
    "typing": ("Any",),
    # Last the names of Python 2, which torch's pickles have for int, str and range.
    **dict.fromkeys(
        ("builtins", "__builtin__"),
        ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list",
         "object", "range", "set", "slice", "str", "tuple", "long", "unicode", "xrange"),
    ),
    "_codecs": ("encode",),
    "numpy": ("dtype", "ndarray"),
    "torch": ("device",),
    "torch.serialization": ("_get_layout",),
    "torch.optim.adam": ("Adam",),
    "torch.optim.adamw": ("AdamW",),
    "torch.optim.sgd": ("SGD",),
    "easydict": ("EasyDict",),
    "yacs.config": ("CfgNode",),
    "transformers.models.codegen.configuration_codegen": ("CodeGenConfig",),
    "transformers.models.gptj.configuration_gptj": ("GPTJConfig",),
    "transformers.configuration_utils": ("PreTrainedConfig", "PretrainedConfig"),
    "transformers.generation.configuration_utils": ("GenerationConfig",),
    "transformers.training_args": ("OptimizerNames", "TrainingArguments"),
    "transformers.trainer_utils": (
        "EvaluationStrategy", "HubStrategy", "IntervalStrategy", "SaveStrategy", "SchedulerType",
    ),
    "transformers.trainer_pt_utils": ("AcceleratorConfig",),
    "accelerate.state": ("PartialState",),
    "accelerate.utils.dataclasses": ("DistributedType",),
    "deepspeed.runtime.fp16.loss_scaler": ("DynamicLossScaler", "LossScaler"),
    "deepspeed.runtime.zero.config": ("ZeroStageEnum",),
    "deepspeed.utils.tensor_fragment": ("fragment_address",),
    "pytorch_lightning.utilities.parsing": ("AttributeDict",),
    "lightning.pytorch.utilities.parsing": ("AttributeDict",),
    "lightning_fabric.utilities.data": ("AttributeDict",),
    "lightning.fabric.utilities.data": ("AttributeDict",),
    "pytorch_lightning.callbacks.model_checkpoint": ("ModelCheckpoint",),
    "pytorch_lightning.callbacks.early_stopping": ("EarlyStopping",),
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.nodes": (
        "AnyNode", "BooleanNode", "FloatNode", "IntegerNode", "StringNode",
    ),
}  # fmt: skip
"""Harmless classes by module. Their values stand beside state dicts and are not kept."""

_NUMPY_CORES = ("numpy.core", "numpy._core")
"""The module's name before and since numpy 2."""

_GLOBALS: dict[str, Any] = {
    **{
        f"{module} {name}": InertClass(f"{module}.{name}")
        for module, names in HARMLESS.items()
        for name in names
    },
    **{
        f"{core}.{function}": InertClass(f"{core}.{function}".replace(" ", "."), (count,))
        for core in _NUMPY_CORES
        for function, count in (
            ("multiarray _reconstruct", 3), ("multiarray scalar", 2), ("numeric _frombuffer", 4),
        )
    },
    "collections OrderedDict": Call(_ordered_dict),
    "collections defaultdict": Call(_default_dict),
    "torch Size": Call(_size),
    "torch Tensor": _TENSOR_CLASS,
    "torch.nn.parameter Parameter": _TENSOR_CLASS,
    "torch._utils _rebuild_tensor": Call(_tensor),
    "torch._utils _rebuild_tensor_v2": Call(_tensor),
    "torch._utils _rebuild_tensor_v3": Call(_typed_tensor),
    "torch._utils _rebuild_meta_tensor_no_storage": Call(_without_data),
    "torch._utils _rebuild_parameter": Call(lambda data, *_: data),
    "torch._utils _rebuild_parameter_with_state": Call(lambda data, *_: data),
    "torch._tensor _rebuild_from_type_v2": Call(_with_attributes),
    "torch.storage UntypedStorage": _UNTYPED,
    **{f"torch {name}": dtype for name, dtype in STORAGES.items()},
    **{f"torch {name}": _Type(dtype) for name, dtype in TORCH_DTYPES.items()},
}  # fmt: skip
