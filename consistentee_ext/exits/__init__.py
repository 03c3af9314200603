"""The exits of a model: the modules that training trains, and what an engine reads of them."""
