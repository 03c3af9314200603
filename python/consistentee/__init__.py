"""Training, evaluation and the command line of ConsistentEE classifiers."""

from consistentee.model.modeling import ConsistentEEConfig, ConsistentEEForSequenceClassification

__all__ = ["ConsistentEEConfig", "ConsistentEEForSequenceClassification"]
