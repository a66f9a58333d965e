"""Conversations, tools and grammars: everything about the text of prompts and answers."""
