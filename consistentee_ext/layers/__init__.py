"""What a model is made of on packed tokens: embedding and blocks, side by side in a `Stack`, or the
Hugging Face module itself, in a `GenericStack`.
"""

from consistentee_ext.layers.attention import Attention
from consistentee_ext.layers.block import Block
from consistentee_ext.layers.convolution import Convolution
from consistentee_ext.layers.embedding import Embedding
from consistentee_ext.layers.generic import GenericStack
from consistentee_ext.layers.mlp import Mlp
from consistentee_ext.layers.stack import Stack

__all__ = ["Attention", "Block", "Convolution", "Embedding", "GenericStack", "Mlp", "Stack"]
