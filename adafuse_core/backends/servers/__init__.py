"""Members whose model runs on a server of another program, such as vLLM."""
