"""The linear layers: a frozen 4-bit matrix and its LoRA factors, as training and decoding compute them.

Both answer in the data type that they compute in, so that what lies between two matrices is computed in it too; only
the residual stream stays in the model's own. Shapes: N tokens, I inputs, O outputs, R the rank.
"""

from __future__ import annotations

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import LoraLayer
from torch.nn import functional as F


class Frozen:
    """The matrix of a linear layer, dense whenever it is asked for, in the data type that the layer computes in."""

    def __init__(self, layer: torch.nn.Linear):
        self.layer = layer
        self.dtype = layer.compute_dtype if isinstance(layer, Linear4bit) else layer.weight.dtype

    def dense(self) -> torch.Tensor:
        """[O, I]."""
        weight = self.layer.weight
        if isinstance(self.layer, Linear4bit):
            return dequantize_4bit(weight.data, weight.quant_state).to(self.dtype)
        return weight.data

    def bias(self) -> torch.Tensor | None:
        """[O], or None."""
        return None if self.layer.bias is None else self.layer.bias.data.to(self.dtype)


class AdaptedLinear:
    """y = W x + b + (alpha / r) B A x with W frozen, as a stand-in for peft's forward.

    The same sum as peft's, with fewer passes over the tokens: the factors are used in the data type of W, the backward
    pass makes W dense again instead of keeping it, and the inputs are kept once. With dropout peft computes it.
    """

    def __init__(self, layer: torch.nn.Module):
        self.layer = layer
        self.frozen = Frozen(layer.base_layer if isinstance(layer, LoraLayer) else layer)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        if not isinstance(layer, LoraLayer) or layer.disable_adapters:
            return _Product.apply(x, None, None, 0.0, self.frozen)
        (name,) = layer.active_adapters
        dropout = layer.lora_dropout[name]
        if dropout.training and getattr(dropout, "p", 0.0) > 0:
            return type(layer).forward(layer, x)
        a_RI, b_OR = layer.lora_A[name].weight, layer.lora_B[name].weight
        return _Product.apply(x, a_RI, b_OR, layer.scaling[name], self.frozen)


class _Product(torch.autograd.Function):
    """W x + b + scale B A x, with gradients for x, A and B."""

    @staticmethod
    def forward(ctx, x, a_RI, b_OR, scale, frozen: Frozen):
        x_NI = x.reshape(-1, x.shape[-1]).to(frozen.dtype)
        y_NO = F.linear(x_NI, frozen.dense(), frozen.bias())
        if a_RI is not None:
            low_NR = x_NI @ a_RI.to(frozen.dtype).T
            y_NO.addmm_(low_NR, (scale * b_OR).to(frozen.dtype).T)
            ctx.save_for_backward(x_NI, low_NR, a_RI, b_OR)
        ctx.scale, ctx.frozen, ctx.shape = scale, frozen, x.shape
        return y_NO.reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):
        frozen = ctx.frozen
        grad_NO = grad.reshape(-1, grad.shape[-1]).to(frozen.dtype)
        grad_NI = grad_NO @ frozen.dense() if ctx.needs_input_grad[0] else None
        grad_a_RI = grad_b_OR = None
        saved = ctx.saved_tensors  # looked at once: a checkpointed pass gives them out once
        if saved:
            x_NI, low_NR, a_RI, b_OR = saved
            grad_NR = grad_NO @ (ctx.scale * b_OR).to(frozen.dtype)
            grad_a_RI = (grad_NR.T @ x_NI).to(a_RI.dtype)
            grad_b_OR = (grad_NO.T @ low_NR).to(b_OR.dtype).mul_(ctx.scale)
            if grad_NI is not None:
                grad_NI.addmm_(grad_NR, a_RI.to(frozen.dtype))
        return None if grad_NI is None else grad_NI.reshape(ctx.shape), grad_a_RI, grad_b_OR, None, None


class MergedLinear:
    """W + (alpha / r) B A as one dense matrix, for decoding: faster than a 4-bit product and the adapter's two.

    A CPU keeps the matrix in the order in which oneDNN reads it, which pays where few tokens meet many weights.
    """

    @torch.no_grad()
    def __init__(self, layer: torch.nn.Module, adapter: str = "", dtype: torch.dtype | None = None):
        frozen = Frozen(layer.base_layer if isinstance(layer, LoraLayer) else layer)
        weight_OI = frozen.dense()
        if isinstance(layer, LoraLayer):
            weight_OI = weight_OI.float() + layer.get_delta_weight(adapter).float()
        bias_O = frozen.bias()
        self.weight_OI = weight_OI.to(dtype or frozen.dtype)
        self.bias_O = None if bias_O is None else bias_O.to(self.weight_OI.dtype)
        self.packed = self.weight_OI.device.type == "cpu" and _packs(self.weight_OI.dtype)
        if self.packed:
            self.weight_OI = torch.ops.mkldnn._reorder_linear_weight(self.weight_OI, _ROWS_AT_ONCE)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.weight_OI.dtype)
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight_OI, self.bias_O, "none", [], "")
        return F.linear(x, self.weight_OI, self.bias_O)


def _packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN puts weights of this type in order on this CPU; bfloat16 needs AVX512 or AVX-NE-CONVERT."""
    if not _ONEDNN:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_ROWS_AT_ONCE = 48
"""For how many rows oneDNN chooses the order; others are served as well."""


class Float32Head:
    """Logits in float32 from a head of two bytes a weight, of which no float32 copy is made on a card."""

    def __init__(self, head: torch.nn.Linear):
        self.head = head

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        bias = None if self.head.bias is None else self.head.bias.float()
        if hidden.is_cuda:
            logits = _Float32Product.apply(hidden, self.head.weight)
            return logits if bias is None else logits + bias
        return F.linear(hidden.float(), self.head.weight.float(), bias)


class _Float32Product(torch.autograd.Function):
    """x W^T of two-byte factors, accumulated and returned in float32 (a CUDA product)."""

    @staticmethod
    def forward(ctx, x, weight_VI):
        ctx.save_for_backward(weight_VI)
        x_NI = x.reshape(-1, x.shape[-1]).to(weight_VI.dtype)
        return torch.mm(x_NI, weight_VI.T, out_dtype=torch.float32).reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):
        (weight_VI,) = ctx.saved_tensors
        return grad.to(weight_VI.dtype) @ weight_VI, None
