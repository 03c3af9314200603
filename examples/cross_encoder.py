"""A reranker of sentence-transformers: python examples/cross_encoder.py MODEL QUERY DOCUMENT..."""

import sys

from sentence_transformers import CrossEncoder

from consistentee_ext import FastEarlyExitEncoder

name, query, *documents = sys.argv[1:]
reranker = CrossEncoder(name)
reranker[0].model = FastEarlyExitEncoder(reranker[0].model)

for hit in reranker.rank(query, documents):
    print(f"{hit['score']:.3f}: {documents[hit['corpus_id']]}")
