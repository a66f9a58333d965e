"""The engine of the local backend: avoids repeated forward passes of a Hugging Face model without changing results."""
