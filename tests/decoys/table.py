"""The decoys of every format."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import gguf
import onnx

from tests.decoys.decoy import (
    GGUF,
    HARMLESS,
    HF,
    NAMED,
    ONNX,
    REFUSED,
    Decoy,
    Plant,
    all_of,
    entry,
    file,
    second_copy,
    trap,
)
from tests.support.gguf_metadata import change_metadata

__all__ = ["CONFIG", "DECOYS", "GRAPH", "TOKENIZER_CONFIG", "genai"]

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
GRAPH, DATA = "onnx/model.onnx", "onnx/model.onnx_data"
OUTSIDE = "../outside/model.safetensors"
CODE = "raise SystemExit('the code of an artefact ran')\n"
TEMPLATE = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
INDEX = json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "second.safetensors"}})


def shard(artefact: Path) -> None:
    """Give the weights as a shard of an index of the standard name; the old name stays beside."""
    file("model.safetensors.index.json", INDEX)(artefact)
    second_copy("second.safetensors")(artefact)


def add_token(artefact: Path) -> None:
    """One more special token in tokenizer.json, under the id after the last."""
    path = artefact / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    last = max(token["id"] for token in content["added_tokens"])
    content["added_tokens"].append(
        {**content["added_tokens"][0], "id": last + 1, "content": "<|decoy|>", "special": True}
    )
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def add_decoded_token(artefact: Path) -> None:
    """One more token in tokenizer_config.json alone."""
    path = artefact / TOKENIZER_CONFIG
    content = json.loads(path.read_text(encoding="utf-8"))
    tokens = content["added_tokens_decoder"]
    last = max(map(int, tokens))
    tokens[str(last + 1)] = {**tokens[str(last)], "content": "<|decoy|>", "special": True}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def genai(**decoder: object) -> Plant:
    """Other entries of the section model.decoder of genai_config.json."""

    def plant(artefact: Path) -> None:
        path = artefact / "genai_config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        content["model"]["decoder"] |= decoder
        path.write_text(json.dumps(content), encoding="utf-8")

    return plant


def external_data(location: str) -> Plant:
    """Let the graph name other files as its data."""

    def plant(artefact: Path) -> None:
        model = onnx.load(artefact / GRAPH, load_external_data=False)
        for tensor in model.graph.initializer:
            for pair in tensor.external_data:
                if pair.key == "location":
                    pair.value = location
        (artefact / GRAPH).write_bytes(model.SerializeToString())

    return plant


def graph_metadata(key: str, value: str) -> Plant:
    """An entry of the graph's metadata that onnxruntime may read."""

    def plant(artefact: Path) -> None:
        model = onnx.load(artefact / GRAPH, load_external_data=False)
        model.metadata_props.add(key=key, value=value)
        (artefact / GRAPH).write_bytes(model.SerializeToString())

    return plant


def key(name: str, value: object, kind: gguf.GGUFValueType) -> Plant:
    """Another value of a key of a GGUF file, or one more key."""

    def plant(artefact: Path) -> None:
        change_metadata(artefact, artefact.with_suffix(".new"), {name: (value, kind)})
        artefact.with_suffix(".new").replace(artefact)

    return plant


def graph_change(change: Callable[[onnx.ModelProto], object]) -> Plant:
    """Another content of the graph."""

    def plant(artefact: Path) -> None:
        model = onnx.load(artefact / GRAPH, load_external_data=False)
        change(model)
        (artefact / GRAPH).write_bytes(model.SerializeToString())

    return plant


def stored_outside(model: onnx.ModelProto) -> onnx.TensorProto:
    """The first tensor of a graph that has its data in a file."""
    tensors: list[onnx.TensorProto] = list(model.graph.initializer)
    return next(tensor for tensor in tensors if tensor.data_location)


def weight_as_input(model: onnx.ModelProto) -> None:
    tensor = stored_outside(model)
    shape = list(tensor.dims)
    model.graph.input.append(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, shape)
    )


def named_pipe(name: str) -> Plant:
    return lambda artefact: os.mkfifo(artefact / name)


def link_to_folder(artefact: Path) -> None:
    (artefact / "custom_generate").symlink_to(artefact.parent)


STRING, UINT16 = gguf.GGUFValueType.STRING, gguf.GGUFValueType.UINT16

WEIGHTS = (
    Decoy(
        "transformers_weights names a file of the folder", HF,
        all_of(entry(CONFIG, transformers_weights="second.safetensors"),
               second_copy("second.safetensors")),
        named="transformers_weights",
    ),
    Decoy(
        "transformers_weights names a file outside", HF,
        all_of(entry(CONFIG, transformers_weights=OUTSIDE), second_copy(OUTSIDE)),
        named="transformers_weights",
    ),
    Decoy(
        "an index named otherwise", HF,
        all_of(entry(CONFIG, transformers_weights="other.safetensors.index.json"),
               file("other.safetensors.index.json", INDEX), second_copy("second.safetensors")),
        named="other.safetensors.index.json",
    ),
    Decoy("a second set of weights", HF, second_copy("second.safetensors"), named="vLLM"),
    Decoy("an index beside the whole file", HF, shard, named="model.safetensors.index.json"),
    Decoy("weights of a variant", HF, second_copy("model.fp16.safetensors"), named="model.fp16"),
    Decoy(
        "weights and settings of Mistral's form", HF,
        all_of(second_copy("consolidated.safetensors"), file("params.json", "{}")),
        named="consolidated.safetensors",
    ),
    Decoy(
        "weights of Mistral's form in a folder below", HF,
        second_copy("original/consolidated.00.safetensors"), named="original/consolidated",
    ),
    Decoy("pytorch_model.bin", HF, trap("pytorch_model.bin"), named="pytorch_model.bin"),
    Decoy("a pickle of another name", HF, trap("weights.pt"), named="weights.pt"),
    Decoy(
        "an index of pickles", HF,
        all_of(file("pytorch_model.bin.index.json", INDEX), trap("pytorch_model-00001.bin")),
        named="pytorch_model.bin.index.json",
    ),
    Decoy("TensorFlow's weights", HF, file("tf_model.h5"), named="tf_model.h5"),
    Decoy("Flax's weights", HF, file("flax_model.msgpack"), named="flax_model.msgpack"),
    Decoy(
        "an adapter", HF,
        all_of(file("adapter_config.json", '{"base_model_name_or_path": "someone/model"}'),
               second_copy("adapter_model.safetensors")),
        named="adapter_config.json",
    ),
    Decoy("a GGUF file in the folder", HF, file("model.Q4_K_M.gguf"), named="llama.cpp"),
    Decoy("a graph in a folder of weights", HF, file(GRAPH), named="optimum"),
    Decoy(
        "weights in a folder below", HF, second_copy("original/model.safetensors"), NAMED,
        "original/model.safetensors belongs to no format",
    ),
    Decoy("what a training run has left", HF, trap("training_args.bin"), NAMED, "training_args"),
)  # fmt: skip

CODES = (
    Decoy(
        "auto_map with its code", HF,
        all_of(entry(CONFIG, auto_map={"AutoModelForCausalLM": "modeling_decoy.Model"}),
               file("modeling_decoy.py", CODE)),
        named="auto_map",
    ),
    Decoy("modeling_codegen.py alone", HF, file("modeling_codegen.py", CODE), named="modeling_"),
    Decoy(
        "a tokenizer's code", HF,
        all_of(entry(TOKENIZER_CONFIG, auto_map={"AutoTokenizer": ["tokenization_decoy.T", None]}),
               file("tokenization_decoy.py", CODE)),
        named="auto_map",
    ),
    Decoy("custom_generate", HF, file("custom_generate/generate.py", CODE), named="custom_gen"),
    Decoy("a link to a folder of code", ONNX, link_to_folder, named="custom_generate"),
    Decoy(
        "kernels", HF, entry(CONFIG, attn_implementation="someone/kernel"),
        named="attn_implementation",
    ),
    Decoy("modules of sentence-transformers", HF, file("modules.json", "[]"), named="modules"),
)  # fmt: skip

CONFIGURATIONS = (
    Decoy(
        "another configuration for another version", HF,
        all_of(entry(CONFIG, configuration_files=["config.4.0.0.json"]),
               second_copy("config.4.0.0.json", CONFIG)),
        named="configuration_files",
    ),
    Decoy(
        "a class of another model", HF, entry(CONFIG, architectures=["LlamaForCausalLM"]),
        named="architectures",
    ),
    Decoy(
        "a nested configuration", HF, entry(CONFIG, text_config={"n_layer": 1}), named="text_config"
    ),
    Decoy(
        "a quantization", HF, entry(CONFIG, quantization_config={"quant_method": "gptq"}),
        named="quantization_config",
    ),
    Decoy(
        "a quantization in a file of its own", HF, file("hf_quant_config.json", "{}"),
        named="hf_quant_config.json",
    ),
    Decoy("an entry that no format has", HF, entry(CONFIG, decoy=1), NAMED, "'decoy'"),
    Decoy(
        "an entry that no format has, of the tokenizer", HF, entry(TOKENIZER_CONFIG, decoy=1),
        NAMED, "'decoy'",
    ),
    Decoy(
        "code for generating", HF, entry("generation_config.json", custom_generate="someone/code"),
        "settings", "custom_generate",
    ),
    Decoy(
        "a sampler that the source has not", ONNX, entry("generation_config.json", top_k=1),
        "settings", "top_k",
    ),
)  # fmt: skip

OBEYED = (
    *(
        Decoy(f"{key} in config.json", HF, entry(CONFIG, **{key: value}), named=key)
        for key, value in {
            "per_layer_config": {"0": {"n_head": 1}}, "attribute_map": {"hidden_size": "n_layer"},
            "fusion_config": {"patch_embeddings": True}, "vision_config": {"model_type": "clip"},
            "speculators_config": {"verifier": {"name_or_path": OUTSIDE}}, "sliding_window": 2,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0}, "rope_theta": 5.0,
            "num_key_value_heads": 1, "head_dim": 3, "model_max_length": 4, "is_causal": False,
            "return_dict": False, "torchscript": True,
        }.items()
    ),
    *(
        Decoy(f"{key} in tokenizer_config.json", HF, entry(TOKENIZER_CONFIG, **{key: value}),
              named=key)
        for key, value in {
            "post_processor": "x", "tokenizer_truncation": {"max_length": 2}, "vocab": {"a": 0},
            "_json_padding": {"length": 3}, "merges": [["a", "b"]], "gguf_file": OUTSIDE,
            "fix_mistral_regex": True, "split_special_tokens": True, "max_len": 3,
            "model_specific_special_tokens": {"x_token": "se"}, "errors": "ignore",
        }.items()
    ),
    Decoy("a type that no tensor has", HF, entry(CONFIG, dtype="bfloat16"), "weights.geometry",
          "dtype is 'bfloat16'"),
    Decoy("a type of transformers 4 that no tensor has", HF, entry(CONFIG, torch_dtype="int8"),
          "weights.geometry", "torch_dtype is 'int8'"),
)  # fmt: skip

TOKENIZERS = (
    Decoy(
        "fast_tokenizer_files", HF,
        all_of(entry(TOKENIZER_CONFIG, fast_tokenizer_files=["tokenizer.4.0.json"]),
               second_copy("tokenizer.4.0.json", "tokenizer.json")),
        named="fast_tokenizer_files",
    ),
    Decoy(
        "fast_tokenizer_files outside the folder", HF,
        all_of(entry(TOKENIZER_CONFIG, fast_tokenizer_files=["../outside/tokenizer.4.0.json"]),
               second_copy("../outside/tokenizer.4.0.json", "tokenizer.json")),
        named="fast_tokenizer_files",
    ),
    Decoy(
        "a path of the tokenizer's file", HF, entry(TOKENIZER_CONFIG, tokenizer_file="/etc/passwd"),
        named="tokenizer_file",
    ),
    Decoy(
        "a tokenizer's class of another family", HF,
        all_of(entry(TOKENIZER_CONFIG, tokenizer_class="BertTokenizer"), file("vocab.txt", "a")),
        named="BertTokenizer",
    ),
    Decoy(
        "a tokenizer's class of another family in config.json", HF,
        all_of(entry(CONFIG, tokenizer_class="LlamaTokenizer"), file("tokenizer.model")),
        named="LlamaTokenizer",
    ),
    Decoy("Mistral's tokenizer", HF, file("tekken.json", "{}"), named="tekken.json"),
    Decoy("a token added to tokenizer.json", HF, add_token, "tokenizer.files", "added_tokens"),
    Decoy(
        "a token added to tokenizer_config.json", HF, add_decoded_token, "tokenizer.files",
        "added_tokens_decoder",
    ),
    Decoy(
        "special tokens added", HF,
        entry("special_tokens_map.json", additional_special_tokens=["se", "sel"]),
        "tokenizer.files", "additional_special_tokens",
    ),
    Decoy(
        "another end of text", HF, entry("special_tokens_map.json", eos_token="sel"),
        "tokenizer.files", "eos_token",
    ),
    Decoy(
        "a chat template that runs code", HF, file("chat_template.jinja", TEMPLATE),
        "tokenizer.files", "default",
    ),
    Decoy(
        "a chat template of another name", HF,
        file("additional_chat_templates/tool_use.jinja", TEMPLATE), "tokenizer.files", "tool_use",
    ),
    Decoy(
        "a chat template in tokenizer_config.json", ONNX,
        entry(TOKENIZER_CONFIG, chat_template=TEMPLATE), "tokenizer.files", "chat_template",
    ),
    Decoy(
        "a chat template for processors", ONNX,
        file("chat_template.json", json.dumps({"chat_template": TEMPLATE})),
        named="chat_template.json",
    ),
)  # fmt: skip

GRAPHS = (
    Decoy("a quantized second graph", ONNX, second_copy("onnx/model_quantized.onnx", GRAPH),
          named="onnx/model_quantized.onnx", graph=GRAPH),
    Decoy("a graph of the name that optimum prefers", ONNX,
          second_copy("onnx/decoder_model_merged.onnx", GRAPH), named="decoder_model_merged",
          graph=GRAPH),
    Decoy("a second graph at the root", ONNX, second_copy("model.onnx", GRAPH),
          named="model.onnx (a second"),
    Decoy("a second graph in a hidden folder", ONNX,
          second_copy(".git/decoder_model_merged.onnx", GRAPH), named=".git/decoder_model_merged"),
    Decoy("a second graph deep below", ONNX, second_copy("a/b/model.onnx", GRAPH),
          named="a/b/model.onnx"),
    Decoy("external data that shadows", ONNX, second_copy("model.onnx_data", DATA),
          named="model.onnx_data (data of a graph"),
    Decoy("a second part of external data", ONNX, file("onnx/model.onnx_data_1"),
          named="model.onnx_data_1"),
    Decoy("external data outside the folder", ONNX,
          all_of(external_data("../../outside/model.onnx_data"),
                 second_copy("../outside/model.onnx_data", DATA)), REFUSED),
    Decoy("external data that is the graph", ONNX,
          external_data("model.onnx"), REFUSED),
    Decoy("genai_config names another graph", ONNX,
          all_of(genai(filename="onnx/other.onnx"),
                 second_copy("onnx/other.onnx", GRAPH)), named="onnx/other.onnx", graph=GRAPH),
    Decoy("genai_config names a graph outside", ONNX,
          all_of(genai(filename="../outside/model.onnx"),
                 second_copy("../outside/model.onnx", GRAPH)), named="../outside/model.onnx"),
    Decoy("genai_config names a library", ONNX,
          genai(session_options={"custom_ops_library": "decoy.so"}),
          named="custom_ops_library"),
    Decoy("genai_config has a second model", ONNX,
          entry("genai_config.json", engine={"filename": "decoy.onnx"}), named="engine"),
    Decoy("a tokenizer's module for genai", ONNX,
          file("tokenizer_module.json", '{"tiktoken_file": "decoy"}'),
          named="tokenizer_module.json"),
    Decoy("a package of models", ONNX, file("manifest.json", "{}"), named="manifest.json"),
    Decoy("another type for transformers.js", ONNX,
          entry(CONFIG, **{"transformers.js_config": {"dtype": "q8"}}), named="q8"),
    Decoy("weights in a folder of graphs", ONNX,
          file("model.safetensors"), named="model.safetensors"),
    Decoy("onnxruntime's settings in the graph", ONNX,
          graph_metadata("ort_config", '{"session_options": {}}'), HARMLESS),
    *(
        Decoy(name, ONNX, graph_change(change), REFUSED, named)
        for name, change, named in (
            ("weights that onnxruntime has packed", lambda model: stored_outside(
                model).external_data.add(key="prepacked_0", value="MatMul|0;4;x"), "says more"),
            ("data in the graph and in a file", lambda model: setattr(
                stored_outside(model), "raw_data", b"decoy"), "says more"),
            ("a file of data for a constant", lambda model: next(
                tensor for tensor in model.graph.initializer if not tensor.data_location
            ).external_data.add(key="location", value="/etc/passwd"), "says more"),
            ("a weight that a client may replace", weight_as_input, "a tensor and an input"),
            ("devices for nodes", lambda model: model.configuration.add(name="x", num_devices=2),
             "configuration in ModelProto"),
            ("metadata of a node", lambda model: model.graph.node[0].metadata_props.add(
                key="ep", value="x"), "metadata_props in NodeProto"),
            ("a second graph's function", lambda model: model.functions.add(
                name="FastGelu", domain="com.microsoft"), "has functions"),
            ("a reference in an attribute", lambda model: setattr(next(
                node for node in model.graph.node if node.attribute).attribute[0],
                "ref_attr_name", "x"), "ref_attr_name in AttributeProto"),
        )
    ),
    Decoy("an offset of data that is there twice", ONNX, graph_change(lambda model: stored_outside(
              model).external_data.add(key="offset", value="4096")), "runtime", "says it twice"),
    Decoy("a node that nothing reads", ONNX, graph_change(lambda model: model.graph.node.append(
              onnx.helper.make_node("Shape", ["input_ids"], ["unread"]))), "weights.geometry",
          "no node reads unread"),
    Decoy("a shared library", ONNX, file("custom_ops.so"), NAMED, "custom_ops.so"),
)  # fmt: skip

BESIDE_GGUF = (
    Decoy("a projector of images", GGUF, second_copy("mmproj-F16.gguf"), named="mmproj-F16.gguf"),
    Decoy("a draft model", GGUF, second_copy("mtp-F16.gguf"), named="mtp-F16.gguf"),
    Decoy("parts of the same name", GGUF, second_copy("gguf-F16-00001-of-00002.gguf"),
          named="a part of a model of the same name"),
    Decoy("arguments for llama.cpp", GGUF, file("preset.ini", "model = /etc/passwd\n"),
          named="preset.ini"),
    Decoy("an imatrix", GGUF, second_copy("imatrix.gguf"), HARMLESS),
    Decoy("an imatrix of the old form", GGUF, file("gguf-F16.imatrix.dat"), HARMLESS),
    Decoy("another model", GGUF, second_copy("other-Q8_0.gguf"), HARMLESS),
    Decoy("a template beside", GGUF, file("chat_template.jinja", TEMPLATE), HARMLESS),
    Decoy("a part of a split model", GGUF,
          key("split.count", 2, UINT16), REFUSED),
    Decoy("an adapter's key", GGUF,
          key("adapter.type", "lora", STRING), REFUSED, "adapter.type"),
    Decoy("another tokenizer inside", GGUF,
          key("tokenizer.huggingface.json", "{}", STRING),
          REFUSED, "tokenizer.huggingface.json"),
    Decoy("a chat template inside", GGUF,
          key("tokenizer.chat_template", TEMPLATE, STRING),
          "settings", "tokenizer.chat_template"),
    Decoy("a space before texts", GGUF,
          key("tokenizer.ggml.add_space_prefix", True, gguf.GGUFValueType.BOOL),
          "settings", "add_space_prefix"),
    Decoy("a model that says it is an adapter", GGUF, key("general.type", "adapter", STRING),
          "weights.geometry", "general.type"),
    Decoy("another way to split texts", GGUF,
          key("tokenizer.ggml.pre", "llama-bpe", STRING),
          "tokenizer.files", "tokenizer.ggml.pre"),
)  # fmt: skip

ODD_FILES = (
    Decoy("a file that belongs to nothing", HF, file("notes.dat"), NAMED, "notes.dat"),
    Decoy("a pipe", HF, named_pipe("notes.json"), NAMED, "notes.json"),
    Decoy("a pipe of a file's name", HF, all_of(lambda artefact: (artefact / "merges.txt").unlink(),
          named_pipe("merges.txt")), NAMED, "merges.txt"),
    Decoy("a name of control characters", HF, file("no\x1b[2Jtes"), NAMED, "belongs to no format"),
    Decoy("a hidden file", ONNX, file(".notes"), NAMED, ".notes"),
    Decoy("a name that differs in case", HF, file("PyTorch_Model.BIN"), named="PyTorch_Model.BIN"),
    Decoy(
        "a licence, a picture and git's folder", HF,
        all_of(file("LICENSE"), file("README_de.md"), file(".gitattributes"), file("a/plot.png"),
               file(".git/lfs/model.safetensors"), file(".git/hooks/post-checkout")),
        HARMLESS,
    ),
    Decoy(
        "the cache of the Hub's client", ONNX,
        file(".cache/huggingface/download/model.safetensors.metadata"), HARMLESS,
    ),
    Decoy(
        "a report of verify", HF,
        file("report.json", '{"schema": 1, "tool": {"name": "cgconvert", "version": "1"}}'),
        HARMLESS,
    ),
)  # fmt: skip

DECOYS = (
    *WEIGHTS, *CODES, *CONFIGURATIONS, *OBEYED, *TOKENIZERS, *GRAPHS, *BESIDE_GGUF, *ODD_FILES,
)  # fmt: skip
