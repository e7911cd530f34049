"""Which codes to write: beam search, refinement (`effort`), rate control, and what codes cost."""
