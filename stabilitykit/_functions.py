"""Names of torch's functions, by what they do to second moments."""

from __future__ import annotations

from typing import Any

from stabilitykit._flatness import ACTIVATIONS

MOVES = {
    "reshape", "view", "flatten", "unflatten", "permute", "transpose", "swapaxes", "swapdims",
    "movedim", "pad", "T", "mT", "H", "squeeze", "unsqueeze", "expand", "expand_as", "view_as",
    "chunk", "split", "tensor_split", "unbind", "narrow", "select", "getitem", "index_select",
    "contiguous", "clone", "to", "float", "double", "half", "bfloat16", "type_as", "roll",
    "flip", "repeat", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    "repeat_interleave", "ravel", "tile", "broadcast_to", "upsample_nearest", "identity",
    "alias", "positive", "cpu", "cuda",
}  # fmt: skip
# They leave each entry where it is.
SAME = {
    "to", "float", "double", "half", "bfloat16", "type_as", "cpu", "cuda", "clone", "contiguous",
}  # fmt: skip
# What they give has the shape of what they get, and nothing else of it.
SHAPED = {
    "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like",
    "new_zeros", "new_ones", "new_full", "new_tensor",
}  # fmt: skip
ALIASES = {
    "imul": "mul", "iadd": "add", "max_pool1d_with_indices": "max_pool1d",
    "max_pool2d_with_indices": "max_pool2d", "max_pool3d_with_indices": "max_pool3d",
    "rdiv": "rtruediv",
}  # fmt: skip
ELEMENTWISE = set(ACTIVATIONS.values()) | {
    "abs", "absolute", "add", "radd", "sub", "rsub", "mul", "rmul", "div", "truediv",
    "rtruediv", "reciprocal", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square",
    "pow", "neg", "negative", "erf", "sin", "cos", "atan", "arctan", "clamp", "clip",
    "clamp_min", "clamp_max", "sinh", "cosh", "asinh", "relu", "hardtanh", "isub", "itruediv",
    "rpow", "ipow", "log_sigmoid",
}  # fmt: skip
WEIGHTED = {
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "matmul", "rmatmul", "mm", "bmm", "addmm", "multi_head_attention_forward",
}  # fmt: skip
ISOLATED = {
    "batch_norm", "instance_norm", "group_norm", "scaled_dot_product_attention",
    "multi_head_attention_forward", "matmul", "bmm", "interpolate", "upsample", "pad", "expand",
    "expand_as", "broadcast_to", "repeat", "repeat_interleave", "tile", "upsample_nearest",
    "mean", "sum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "amax", "max",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
}  # fmt: skip
# Of two tensors of different shapes, the smaller one gets a gradient from many places.
BROADCAST = {"add", "radd", "sub", "rsub", "subtract", "mul", "rmul", "multiply"}
WANTS_FUNCTION = {
    "cat", "concat", "concatenate", "stack", "hstack", "vstack", "layer_norm", "rms_norm",
    "batch_norm", "instance_norm", "mean", "sum", "interpolate", "upsample",
    "matmul", "rmatmul", "bmm", "mm",
}  # fmt: skip


def plain_name(function: Any) -> str:
    """The name without underscores: "add" for `torch.add`, `Tensor.add_` and `Tensor.__iadd__`."""
    name = getattr(function, "__name__", str(function))
    if name == "__get__":
        name = getattr(function.__self__, "__name__", name)
    name = name.strip("_")
    return ALIASES.get(name, name)


def named(function: Any, name: str) -> Any:
    """The function under its plain name, for rules that ask which it is."""
    if getattr(function, "__name__", "") == name:
        return function

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    call.__name__ = name
    return call


def spelled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The arguments as rules call them: `input` first, then `other`, and `dim` for `axis`."""
    kwargs = {"dim" if key == "axis" else key: value for key, value in kwargs.items()}
    for place, word in enumerate(("input", "other")):
        if word in kwargs and len(args) == place:
            args = (*args, kwargs.pop(word))
    return args, kwargs


def writes(function: Any, name: str, kwargs: dict[str, Any]) -> bool:
    """Whether a call works in place."""
    raw = getattr(function, "__name__", "")
    marked = (raw.endswith("_") and not raw.startswith("__")) or raw.startswith("__i")
    return marked or bool(kwargs.get("inplace")) or "out" in kwargs or name == "setitem"
