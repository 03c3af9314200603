"""How each family of encoders runs on packed tokens; one file a family."""

from consistentee_ext.backbones.bert import PackedBert

__all__ = ["PackedBert"]
