"""Conversations to learn from: records -> messages -> tokens with a mask -> packed rows, and checks before a start."""
