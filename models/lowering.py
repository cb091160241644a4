"""What compilers are given: a torch module with fp32 in and out and low precision between, exported at one shape.

Also how many of its layers compute in which precision. Must not know any backend. Imports torch: for builds only.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.rounding import compensated, to_bf16

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
LARGEST = 1200
"""Inputs of one output value, above which `settled` leaves a convolution as it is."""
_ARITHMETIC = {"conv2d", "convolution", "addmm", "mm", "bmm", "baddbmm", "linear", "matmul", "einsum"}


class Autocast(nn.Module):
    """Weights in fp32, arithmetic in `precision` where torch knows that it may be: sums, softmax, norms are fp32."""

    def __init__(self, network: nn.Module, precision: str, kind: str, scaling: nn.Module | None = None) -> None:
        """`scaling` makes the network's input of raw counts; without it the input is ready."""
        super().__init__()
        self.network = network
        self.scaling = nn.Identity() if scaling is None else scaling
        self._kind, self._dtype, self._is_low = kind, DTYPES[precision], precision != "fp32"

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """What the network gives: scores [B, K] and embedding [B, E], float32."""
        x_BCHW = self.scaling(x_BCHW)
        if not self._is_low:
            y_BK, embedding_BE = self.network(x_BCHW)
        else:
            with torch.autocast(self._kind, self._dtype):
                y_BK, embedding_BE = self.network(x_BCHW)
        return y_BK.float(), embedding_BE.float()


class Converted(nn.Module):
    """Weights and all arithmetic in `precision`: for compilers that take the types of a graph as they stand."""

    def __init__(self, network: nn.Module, precision: str) -> None:
        super().__init__()
        self._dtype = DTYPES[precision]
        self.network = network.to(self._dtype)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """What the network gives: scores [B, K] and embedding [B, E], float32."""
        y_BK, embedding_BE = self.network(x_BCHW.to(self._dtype))
        return y_BK.float(), embedding_BE.float()


def folded(network: nn.Module, example: Tensor) -> nn.Module:
    """The same network with each BatchNorm folded into the convolution before it, in fp32.

    Compilers fold, too, but after the weights were rounded: that cost twice the error of bf16.
    """
    network = copy.deepcopy(network).eval()
    for convolution, norm in _foldable(exported(network, example)):
        first, second = network.get_submodule(convolution), network.get_submodule(norm)
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
            network.set_submodule(convolution, fuse_conv_bn_eval(first, second))
            network.set_submodule(norm, nn.Identity())
    return network


def settled(network: nn.Module, inputs_NCHW: Tensor, precision: str) -> nn.Module:
    """For bf16: a folded network with its convolutions already in bf16, rounded by what they see of `inputs_NCHW`.

    Patches are bright everywhere, so the errors of a filter add up when each weight is rounded to the nearest, as
    compilers do: that took up all that bf16 may change. Convolutions of more than LARGEST inputs stay as they are:
    they gain little, and take long. So do other precisions.
    """
    if precision != "bf16":
        return network
    network = copy.deepcopy(network).eval()
    moments: dict[nn.Conv2d, Tensor] = {}
    hooks = [m.register_forward_pre_hook(partial(_see, moments)) for m in network.modules() if _is_settled(m)]
    with torch.no_grad():
        network(inputs_NCHW)
        for hook in hooks:
            hook.remove()
        for layer, moments_KK in moments.items():
            _settle(layer, moments_KK)
    return network


def _is_settled(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.bias is not None
        and module.groups == 1
        and isinstance(module.padding, tuple)
        and module.weight[0].numel() <= LARGEST
    )


def _see(moments: dict[nn.Conv2d, Tensor], layer: nn.Conv2d, given: tuple[Tensor]) -> None:
    assert not isinstance(layer.padding, str)
    columns_NKP = nn.functional.unfold(given[0], layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    # The offset is one more weight, of an input that is always 1.
    columns_NKP = torch.cat([torch.ones_like(columns_NKP[:, :1]), columns_NKP], dim=1)
    products_KK = torch.einsum("nkp,nlp->kl", columns_NKP, columns_NKP).double()
    moments[layer] = products_KK / (columns_NKP.shape[0] * columns_NKP.shape[2])


def _settle(layer: nn.Conv2d, moments_KK: Tensor) -> None:
    """Round, the offset first: it is large, since it takes the brightness away again, and ends in bf16 as well."""
    assert layer.bias is not None
    weights_OK = torch.cat([layer.bias[:, None], layer.weight.flatten(1)], dim=1)
    rounded_OK = torch.from_numpy(compensated(weights_OK.numpy(), moments_KK.numpy(), to_bf16)).float()
    layer.bias.copy_(rounded_OK[:, 0])
    layer.weight.copy_(rounded_OK[:, 1:].reshape(layer.weight.shape))


def _foldable(program: ExportedProgram) -> list[tuple[str, str]]:
    """Modules of convolutions, each used once, and of the BatchNorm that alone reads what they give."""
    signature = program.graph_signature
    owners = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    nodes = list(program.graph_module.graph.nodes)
    pairs = []
    for norm in nodes:
        convolution = norm.args[0] if norm.target == torch.ops.aten.batch_norm.default else None
        if not isinstance(convolution, torch.fx.Node) or convolution.target != torch.ops.aten.conv2d.default:
            continue
        weights = (convolution.args[1], norm.args[1])
        if len(convolution.users) == 1 and all(isinstance(w, torch.fx.Node) and len(w.users) == 1 for w in weights):
            pairs.append(tuple(owners[str(weight)].rpartition(".")[0] for weight in weights))
    return [(convolution, norm) for convolution, norm in pairs]


def exported(module: nn.Module, example: Tensor) -> ExportedProgram:
    """The module's graph at the example's shape and dtype."""
    with torch.no_grad(), torch_deprecations_ignored():
        return torch.export.export(module.eval(), (example,))


@contextmanager
def torch_deprecations_ignored() -> Iterator[None]:
    """torch's own compilers use names that torch deprecates; nothing of it concerns us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def arithmetic_census(program: ExportedProgram) -> dict[str, int]:
    """How many convolutions and products of a graph compute in which precision, e.g. {"bf16": 33}."""
    census: Counter[str] = Counter()
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                words = str(node.target).split(".")
                if node.op == "call_function" and len(words) > 1 and words[-2] in _ARITHMETIC:
                    census[_name(node)] += 1
    return dict(census)


def columns(program: ExportedProgram) -> list[int]:
    """Columns of each output."""
    (node,) = program.graph_module.graph.find_nodes(op="output")
    return [int(output.meta["val"].shape[1]) for output in node.args[0]]


def _name(node: torch.fx.Node) -> str:
    dtype = node.meta["val"].dtype
    return _NAMES.get(dtype, str(dtype).removeprefix("torch."))
