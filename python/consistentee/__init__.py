"""Training, evaluation and the command line of ConsistentEE classifiers."""

from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee_ext import __version__
from consistentee_ext.configuration import ConsistentEEConfig

__all__ = ["ConsistentEEConfig", "ConsistentEEForSequenceClassification", "__version__"]
