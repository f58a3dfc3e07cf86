"""Copies the weights of this project's blocks into torch's own Transformer layers."""

import torch
from torch import nn

from regard.transformer import Block, MultiHeadAttention


def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    if ours.kind == "self":
        weight, bias = ours.qkv.weight, ours.qkv.bias
    else:
        weight = torch.cat([ours.q.weight, ours.kv.weight])
        bias = torch.cat([ours.q.bias, ours.kv.bias])
    theirs.in_proj_weight.copy_(weight)
    theirs.in_proj_bias.copy_(bias)
    copy(ours.out, theirs.out_proj)


def copy(ours: nn.Module, theirs: nn.Module) -> None:
    theirs.load_state_dict(ours.state_dict())


@torch.no_grad()
def twin(block: Block, activation: str) -> nn.TransformerEncoderLayer | nn.TransformerDecoderLayer:
    """torch's layer with the weights of this block, in evaluation mode."""
    linear = block.feed_forward.up
    kind = nn.TransformerEncoderLayer if block.cross_attention is None else nn.TransformerDecoderLayer
    layer = kind(
        linear.in_features,
        block.attention.heads,
        linear.out_features,
        activation=activation,
        batch_first=True,
        norm_first=block.norm_first,
        dtype=linear.weight.dtype,
    ).eval()
    copy_attention(block.attention, layer.self_attn)
    norms = [block.attention_norm, block.feed_forward_norm]
    if block.cross_attention is not None:
        copy_attention(block.cross_attention, layer.multihead_attn)
        norms.insert(1, block.cross_attention_norm)
    for number, norm in enumerate(norms, start=1):
        copy(norm, getattr(layer, f"norm{number}"))
    copy(block.feed_forward.up, layer.linear1)
    copy(block.feed_forward.down, layer.linear2)
    return layer
