"""Build an ONNX graph from nodes, shapes and initializers; its weights are in another file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from cgconvert.version import __version__
from cgconvert.write.plan import ArrayPlan

__all__ = ["IR_VERSION", "MICROSOFT", "OPERATORS", "OPSET", "GraphBuilder", "Shape"]

OPSET = 17
"""The first opset with LayerNormalization; the decoder needs nothing of newer ones."""

IR_VERSION = 8
"""The IR version that belongs to opset 17."""

MICROSOFT = "com.microsoft"
OPERATORS: Mapping[str, str] = {
    **dict.fromkeys(
        ("Add", "Cast", "Concat", "Expand", "Gather", "LayerNormalization", "MatMul", "Neg", "Or",
         "ReduceSum", "Reshape", "Shape", "Slice", "Sub", "Unsqueeze", "Where"),
        "",
    ),
    **dict.fromkeys(
        ("FastGelu", "GatherBlockQuantized", "GroupQueryAttention", "MatMulNBits",
         "SkipLayerNormalization"),
        MICROSOFT,
    ),
}  # fmt: skip
"""The domain of each operator that graphs may have; `admission` refuses all others."""

_TYPES = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "U8": TensorProto.UINT8}

Shape = Sequence[int | str]


class GraphBuilder:
    """Collects a graph whose activations are float32 or float16 (`dtype` F32 or F16).

    Every intermediate value is declared with its shape, since onnx's shape inference knows
    nothing of ONNX Runtime's operators.
    """

    def __init__(self, dtype: str) -> None:
        self.type = _TYPES[dtype]
        self._nodes: list[onnx.NodeProto] = []
        self._values: list[onnx.ValueInfoProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Shape, elem_type: int | None = None) -> str:
        """Declare an input of the graph."""
        self._inputs.append(self._value(name, shape, elem_type))
        return name

    def output(self, name: str, shape: Shape) -> str:
        """Declare an output of the graph."""
        self._outputs.append(self._value(name, shape))
        return name

    def declare(self, name: str, shape: Shape, elem_type: int | None = None) -> str:
        """Declare an intermediate value; its type is the graph's own if `elem_type` is None."""
        self._values.append(self._value(name, shape, elem_type))
        return name

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        output: str,
        shape: Shape | None = None,
        elem_type: int | None = None,
        *,
        more: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        """Append a node, named like its first output; returns this name.

        `shape` and `elem_type` declare the first output; without a shape it must be declared
        elsewhere. `more` names the other outputs, "" for one that is not needed.
        """
        outputs = [output, *more]
        self._nodes.append(
            helper.make_node(op, inputs, outputs, name=output, domain=OPERATORS[op], **attributes)
        )
        return output if shape is None else self.declare(output, shape, elem_type)

    def constant(
        self, name: str, elem_type: int, shape: Sequence[int], values: Sequence[int | float]
    ) -> str:
        """Add a small initializer whose values are in the graph itself."""
        self._initializers.append(helper.make_tensor(name, elem_type, shape, values))
        return name

    def external(self, array_plan: ArrayPlan, location: str) -> None:
        """Add an initializer whose values are in the file `location`, in the graph's folder."""
        tensor = TensorProto(
            name=array_plan.name,
            data_type=_TYPES[array_plan.dtype],
            dims=array_plan.shape,
            data_location=TensorProto.EXTERNAL,
        )
        entries = {"location": location, "offset": array_plan.offset, "length": array_plan.nbytes}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        self._initializers.append(tensor)

    def serialize(self, name: str, properties: Iterable[tuple[str, str]]) -> bytes:
        """Return the model's bytes; the same calls give the same bytes."""
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, self._initializers,
            value_info=self._values,
        )  # fmt: skip
        model = helper.make_model(
            graph,
            producer_name="cgconvert",
            producer_version=__version__,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
        )
        helper.set_model_props(model, dict(properties))
        serialized: bytes = model.SerializeToString(deterministic=True)
        return serialized

    def _value(self, name: str, shape: Shape, elem_type: int | None = None) -> onnx.ValueInfoProto:
        kind = self.type if elem_type is None else elem_type
        return helper.make_tensor_value_info(name, kind, shape)
