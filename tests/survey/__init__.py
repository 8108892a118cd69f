"""A survey of every causal language model that transformers knows: which of them ``capture`` takes whole."""
