"""The operators that an exported program may call. PyTorch looks a name up in its own modules and calls whatever it finds
there: `torch.os.system` is a name too.

Of PyTorch's operators on tensors (`torch.ops.aten`) those load that compute from tensors and numbers: none that takes the
name of a file or an object, leaves memory uninitialised, skips the checks of its indices, or is private and not on the list.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

import torch

_ATEN = re.compile(r"torch\.ops\.aten\.([a-z_][a-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)", re.ASCII | re.IGNORECASE)
_SIZES = "add and_ eq floordiv ge getitem gt le lt mod mul ne neg or_ pos pow sub truediv"
_SYMBOLIC = "_sym_sqrt sym_float sym_int sym_ite sym_max sym_min sym_not sym_sum"
_GRAPHS = "associative_scan cond map_impl scan while_loop wrap_with_autocast wrap_with_set_grad_enabled"
#: Functions of sizes, and operators that call graphs of the same program, each of which is checked as the program is.
_OTHERS = frozenset(
    [f"_operator.{name}" for name in _SIZES.split()]
    + [f"math.{name}" for name in ("ceil", "floor", "trunc", "sqrt")]
    + [f"torch.{name}" for name in _SYMBOLIC.split()]
    + [f"torch.ops.higher_order.{name}" for name in _GRAPHS.split()]
)
_PRIVATE = (
    "_adaptive_avg_pool2d _adaptive_avg_pool3d _assert_async _assert_scalar _assert_tensor_metadata _cast_Float "
    "_cdist_forward _conj _convolution _convolution_mode _functional_assert_async _functional_assert_scalar "
    "_is_all_true _is_any_true _local_scalar_dense _log_softmax _logcumsumexp _masked_scale "
    "_native_batch_norm_legit_no_training _neg_view _pad_circular _pad_enum _prelu_kernel _safe_softmax "
    "_shape_as_tensor _softmax _stack _to_copy _trilinear _unique2 _unsafe_view _upsample_bicubic2d_aa "
    "_upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
    "_weight_norm _weight_norm_interface __and__ __or__ __xor__ __lshift__ __rshift__"
)
_LISTED = frozenset(_PRIVATE.split())
#: Memory of others, files, storages, and packed weights that are pointers.
_NEVER = re.compile(
    r"empty|new_empty|resize|set_$|set_data|from_file|save|fbgemm|mkldnn|miopen|cudnn|quantized|sparse|nested|csr|csc|bsr|bsc|"
    r"record_stream|is_pinned|pin_memory|rename|names?$|align_|backward|retain_grad|requires_grad|ctc_loss"
)
#: What reads, or writes, beyond its tensors when their sizes do not fit each other, or divides by one that is zero. Of those
#: that honest networks need, `serving.pt2.fitting` looks at the sizes.
_TRUSTING = re.compile(
    r"native_batch_norm|batch_norm_update_stats|embedding_bag|fused_moving_\w+|choose_qparams_\w+|promote_types|range|"
    r"lu_unpack|combinations|slow_conv\w*|thnn_conv\w*"
)
_TYPE = re.compile(r"(Optional\[|List\[)*(Tensor|int|bool|float|number|complex|Device|Generator|str)\]*")
_CHOICES = (
    "reduce padding_side norm approximate mode ord rounding_mode interpolation driver p pad_mode UPLO side padding equation "
    "indexing assert_msg"
)
_WORDS = frozenset(_CHOICES.split())


@lru_cache(maxsize=4096)
def is_operator(name: str) -> bool:
    """Whether a program may call what PyTorch finds under that name."""
    if name in _OTHERS:
        return True
    found = _ATEN.fullmatch(name)
    return found is not None and _computes(found[1], found[2])


def _computes(name: str, overload: str) -> bool:
    if (name.startswith("_") and name not in _LISTED) or _NEVER.search(name) or "out" in overload.lower():
        return False
    if _TRUSTING.fullmatch(name) or (name.endswith("_aa") and overload != "vec") or overload == "data":
        return False
    operator = getattr(getattr(torch.ops.aten, name, None), overload, None)
    if not isinstance(operator, torch._ops.OpOverload) or operator.name() not in _on_tensors():
        return False
    return all(_fits(str(a.type), a.name) for a in operator._schema.arguments)


@cache
def _on_tensors() -> frozenset[str]:
    """PyTorch's operators proper; TorchScript registers functions of its interpreter beside them."""
    return frozenset(torch._C._dispatch_get_all_op_names())


def _fits(kind: str, name: str) -> bool:
    """Whether an argument is of tensors and numbers, or one of the words that choose how to compute."""
    return name != "unsafe" and _TYPE.fullmatch(kind) is not None and ("str" not in kind or name in _WORDS)
