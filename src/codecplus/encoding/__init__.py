"""The choice of codes: beam search, refinement (`effort`), rate control, and the bits of codes."""
