"""Conversations: messages, and each member's own template for them."""
