"""A server of classifiers: a batcher that knows no framework, and thin HTTP routes around it."""
