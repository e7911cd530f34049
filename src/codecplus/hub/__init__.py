"""Checkpoints, cards and the demo on the Hugging Face Hub."""

from typing import TYPE_CHECKING

from codecplus._lazy import lazy_names

if TYPE_CHECKING:
    from codecplus.hub.cards import write_card
    from codecplus.hub.repository import export_folder
    from codecplus.hub.space import export_space
    from codecplus.hub.upload import push, push_space

# Cards need the evaluation harness, which nothing else here does.
__getattr__ = lazy_names(
    __name__,
    {
        "export_folder": "repository",
        "export_space": "space",
        "push": "upload",
        "push_space": "upload",
        "write_card": "cards",
    },
)

__all__ = ["export_folder", "export_space", "push", "push_space", "write_card"]
