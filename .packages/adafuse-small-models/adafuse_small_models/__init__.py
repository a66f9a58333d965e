"""The folders of two small language models; `adafuse_core.small_models.path` finds them."""
