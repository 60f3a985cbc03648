"""From any source of text to token files: sources, documents, tokens, the two splits."""
