"""Members whose model runs in another process, which uses the local backend there."""
