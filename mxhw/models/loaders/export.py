"""What a Llama of package ``transformers`` computes, read off its exported graph.

The unmodified class is exported with ``torch.export`` from a configuration alone: its parameters
take no memory. Norm, rotary embedding and attention are opaque operators there, so that nothing has
to be recognised in small pieces. The graph is then followed from the logits back to the tokens;
whatever does not belong to a Llama as :mod:`mxhw.models.llama` has it is refused.
"""

import contextlib
import importlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch
from torch import Tensor, fx, nn

from mxhw.errors import ToolError, UserError
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import Rope

__all__ = ["FAMILIES", "export_names", "match_llama"]

#: Model types that can be exported, with their prefix of class names.
FAMILIES = {"llama": "Llama", "qwen2": "Qwen2"}

_TOKENS = 8
_SCALE_TOLERANCE = 1e-6
_aten = torch.ops.aten


@torch.library.custom_op("mxhw::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    raise NotImplementedError("A norm of an exported graph is not computed")


@torch.library.custom_op("mxhw::rope", mutates_args=())
def _rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    raise NotImplementedError("A rotation of an exported graph is not computed")


@torch.library.custom_op("mxhw::attention", mutates_args=())
def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    raise NotImplementedError("An attention of an exported graph is not computed")


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


@_rope.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.empty_like(x)


@_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    batch, heads, length, size = query.shape
    return query.new_empty(batch, length, heads, size)


def _library() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ToolError(
            "Hugging Face folders need the package 'transformers' (pip install transformers)"
        ) from error


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits


@contextlib.contextmanager
def _opaque(modeling: Any, prefix: str) -> Iterator[None]:
    """Let the operators of a family's module be opaque."""

    def norm(self: Any, x: Tensor) -> Tensor:
        return _rms_norm(x, self.weight, self.variance_epsilon)

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        return _rope(q, cos, sin), _rope(k, cos, sin)

    with (
        mock.patch.object(getattr(modeling, f"{prefix}RMSNorm"), "forward", norm),
        mock.patch.object(modeling, "apply_rotary_pos_emb", rotate),
    ):
        yield


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
) -> tuple[Tensor, None]:
    scale = options.get("scaling")
    if scale is None or options.get("sliding_window") is not None or options.get("softcap"):
        raise UserError("Attention must be scaled, over all positions and without a cap")
    return _attention(query, key, value, float(scale)), None


def export_names(path: Path, settings: Mapping[str, Any], config: LlamaConfig) -> dict[str, str]:
    """Export the model of a configuration and return what each of its parameters is used as.

    Parameters
    ----------
    path : Path
        The configuration's file, for messages.
    settings : mapping
        Its content, with ``model_type`` one of :data:`FAMILIES`.
    config : LlamaConfig
        What it was read as; the exported model must agree.

    Returns
    -------
    dict of str to str
        Name in :class:`~mxhw.models.llama.Llama` by the parameter's name.

    Raises
    ------
    UserError
        If the model computes anything else.
    ToolError
        If package ``transformers`` is missing.
    """
    library = _library()
    family = settings["model_type"]
    prefix = FAMILIES[family]
    modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    library.AttentionInterface.register("mxhw", _attend)
    masking = importlib.import_module("transformers.masking_utils")
    masking.AttentionMaskInterface.register("mxhw", lambda *args, **kwargs: None)
    try:
        kind = getattr(library, f"{prefix}Config")
        plain = _model_fields(settings, kind, library.PreTrainedConfig)
        made = kind(**plain, attn_implementation="mxhw")
        with torch.device("meta"):
            model = getattr(library, f"{prefix}ForCausalLM")(made).eval()
        with _opaque(modeling, prefix), warnings.catch_warnings():
            # The libraries warn of what they use of each other: nothing that a user can change.
            warnings.simplefilter("ignore")
            ids = torch.zeros(1, _TOKENS, dtype=torch.int64, device="meta")
            exported = torch.export.export(_Logits(model), (ids,)).run_decompositions({})
        rotary = getattr(modeling, f"{prefix}RotaryEmbedding")(made)
    # Whatever the library raises about a configuration that it does not take.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: model cannot be exported: {reason}") from error
    _check_angles(path, rotary, config)
    parameters = exported.graph_signature.inputs_to_parameters
    names = {key: name.removeprefix("model.") for key, name in parameters.items()}
    return match_llama(path, exported.graph_module.graph, names, config)


def _model_fields(settings: Mapping[str, Any], kind: type, base: type) -> dict[str, Any]:
    """What is a model's own in a configuration's file.

    Fields of the base class say how a model is kept or run: they name code, or make it allocate.
    What neither class knows stays, so that a model which does something with it is seen.
    """
    own = inspect.get_annotations(kind)
    foreign = {*inspect.get_annotations(base), *_RUN_FIELDS}
    return {
        key: value
        for key, value in settings.items()
        if key in own or not (key.startswith("_") or key in foreign or hasattr(base, key))
    }


_RUN_FIELDS = (
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "name_or_path",
    "output_attentions",
    "per_layer_config",
    "torch_dtype",
)


def _check_angles(path: Path, rotary: Any, config: LlamaConfig) -> None:
    """Compare the class's rotary tables with :class:`~mxhw.models.llama.Rope`'s."""
    position = torch.arange(config.context).unsqueeze(0)
    found = rotary(torch.zeros(1), position)
    own = Rope(config.head_size, config.context, config.rope_theta)
    # Angles of float32 are off by their rounding, more at late positions.
    tolerance = 1e-5 + 1e-6 * config.context
    for name, theirs, table in zip(("cosines", "sines"), found, (own.cos, own.sin), strict=True):
        difference = float((theirs[0] - torch.cat((table, table), -1)).abs().max())
        if not difference < tolerance:
            raise UserError(
                f"{path}: rotary {name} must be those of the base {config.rope_theta:g}, but they "
                f"are off by {difference:.2g}"
            )


def match_llama(
    path: Path, graph: fx.Graph, names: Mapping[str, str], config: LlamaConfig
) -> dict[str, str]:
    """Follow an exported graph; results and errors as for :func:`export_names`.

    Parameters
    ----------
    path : Path
    graph : torch.fx.Graph
    names : mapping of str to str
        Name of each parameter by that of its placeholder.
    config : LlamaConfig
    """
    return _Matcher(path, names, config).match(graph)


class _Matcher:
    def __init__(self, path: Path, names: Mapping[str, str], config: LlamaConfig) -> None:
        self._path = path
        self._names = names
        self._config = config
        self._found: dict[str, str] = {}

    def match(self, graph: fx.Graph) -> dict[str, str]:
        output = next(node for node in graph.nodes if node.op == "output")
        (logits,) = output.args[0]
        head = self._call(logits, _aten.linear.default, "the logits")
        self._use(head.args[1], "embedding.weight" if self._config.tied else "head.weight")
        x = self._norm(head.args[0], "norm.weight")
        for layer in reversed(range(self._config.layers)):
            x = self._block(x, layer)
        table = self._call(x, _aten.embedding.default, "the input of the first layer")
        self._use(table.args[0], "embedding.weight")
        if self._skip(table.args[1]).op != "placeholder":
            self._fail(table, "a table that is indexed by the tokens")
        return self._found

    def _block(self, x: Any, layer: int) -> Any:
        name = f"blocks.{layer}"
        middle, product = self._sum(x, f"layer {layer}")
        down = self._linear(product, f"{name}.feed_forward.down")
        gated = self._call(down, _aten.mul.Tensor, "the gated product")
        silu, up = (self._skip(argument) for argument in gated.args)
        if silu.target is not _aten.silu.default:
            silu, up = up, silu
        gate = self._call(silu, _aten.silu.default, "the gate").args[0]
        inputs = [
            self._linear(gate, f"{name}.feed_forward.gate"),
            self._linear(up, f"{name}.feed_forward.up"),
        ]
        normed = self._same(inputs, gated)
        if self._norm(normed, f"{name}.feed_forward_norm.weight") is not middle:
            self._fail(normed, "a norm of the attention's sum")
        return self._attention(middle, name)

    def _attention(self, middle: Any, name: str) -> Any:
        x, product = self._sum(middle, name)
        output = self._linear(product, f"{name}.attention.wo")
        node = self._call(output, torch.ops.mxhw.attention.default, "the attention")
        query, key, value, scale = node.args
        wanted = 1 / math.sqrt(self._config.head_size)
        if not math.isclose(scale, wanted, rel_tol=_SCALE_TOLERANCE):
            self._fail(node, f"scaled by {wanted:.6g}, not {scale:.6g}")
        sizes = [tuple(part.meta["val"].shape) for part in (query, key, value)]
        config = self._config
        heads = [config.heads, config.kv_heads, config.kv_heads]
        if sizes != [(1, count, _TOKENS, config.head_size) for count in heads]:
            self._fail(node, f"of heads of the configuration, not {sizes}")
        rotate = torch.ops.mxhw.rope.default
        inputs = [
            self._linear(self._call(query, rotate, "queries").args[0], f"{name}.attention.wq"),
            self._linear(self._call(key, rotate, "keys").args[0], f"{name}.attention.wk"),
            self._linear(value, f"{name}.attention.wv"),
        ]
        normed = self._same(inputs, node)
        if self._norm(normed, f"{name}.attention_norm.weight") is not x:
            self._fail(normed, "a norm of the layer's input")
        return x

    def _sum(self, node: Any, what: str) -> tuple[Any, Any]:
        """Input and product of a residual addition."""
        node = self._call(node, _aten.add.Tensor, f"the sum of {what}")
        if node.kwargs:
            self._fail(node, "a plain sum")
        first, second = (self._skip(argument) for argument in node.args)
        return first, second

    def _norm(self, node: Any, weight: str) -> Any:
        node = self._call(node, torch.ops.mxhw.rms_norm.default, f"the norm {weight}")
        x, parameter, epsilon = node.args
        self._use(parameter, weight)
        if not math.isclose(epsilon, self._config.norm_epsilon, rel_tol=1e-6):
            self._fail(node, f"with the epsilon {self._config.norm_epsilon:g}, not {epsilon:g}")
        return self._skip(x)

    def _linear(self, node: Any, name: str) -> Any:
        node = self._call(node, _aten.linear.default, name)
        x, weight, *bias = node.args
        self._use(weight, f"{name}.weight")
        if bias and bias[0] is not None:
            self._use(bias[0], f"{name}.bias")
        return self._skip(x)

    def _same(self, nodes: list[Any], reader: Any) -> Any:
        if any(node is not nodes[0] for node in nodes):
            self._fail(reader, "a product of projections of one input")
        return nodes[0]

    def _use(self, node: Any, name: str) -> None:
        parameter = self._parameter(node)
        if parameter is None or self._found.setdefault(parameter, name) != name:
            self._fail(node, f"the parameter {name!r}")

    def _parameter(self, node: Any) -> str | None:
        node = self._skip(node)
        return self._names.get(node.name) if node.op == "placeholder" else None

    def _call(self, node: Any, target: Callable[..., Any], what: str) -> Any:
        node = self._skip(node)
        if node.target is not target:
            self._fail(node, f"{what}, a call of {target}")
        return node

    def _skip(self, node: Any) -> Any:
        """The node behind those that change no value and no order of the elements of a row."""
        while isinstance(node, fx.Node) and node.op == "call_function":
            arguments = node.args[1:]
            if (
                node.target in _SAME
                or (node.target is _aten.transpose.int and arguments in ((1, 2), (2, 1)))
                or node.target is _aten.slice.Tensor
                and arguments[1:] in _EVERYTHING
            ):
                node = node.args[0]
            else:
                break
        return node

    def _fail(self, node: Any, expected: str) -> NoReturn:
        found = node.target if isinstance(node, fx.Node) else node
        raise UserError(
            f"{self._path}: exported model is no Llama that is supported: there must be "
            f"{expected}, not {found}"
        )


_SAME = (
    _aten.view.default,
    _aten.reshape.default,
    _aten._unsafe_view.default,
    _aten.alias.default,
    _aten.clone.default,
    _aten.contiguous.default,
)
_LAST = (1 << 63) - 1
_EVERYTHING = ((), (0,), (0, _LAST), (None,), (None, None))
