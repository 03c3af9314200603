"""Training, evaluation and the command line of ConsistentEE classifiers."""

from consistentee.modeling import ConsistentEEConfig, ConsistentEEForSequenceClassification

__all__ = ["ConsistentEEConfig", "ConsistentEEForSequenceClassification"]
