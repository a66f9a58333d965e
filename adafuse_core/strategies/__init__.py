"""How members are fused: one file per strategy."""
