"""What a user's process pushes by transformers' own methods: `python push_model.py FOLDER`."""

import sys
from pathlib import Path


def main(folder: str) -> None:
    from tiny import tiny_model

    from codecplus import Codec

    model = tiny_model(downsampling_ratios=[2, 4], sampling_rate=8000)
    model.push_to_hub("ada/pushed", tags=["mine"])
    model.push_to_hub("ada/written")
    model.save_pretrained(folder, push_to_hub=True, repo_id="ada/saved")
    tiny_model(True, downsampling_ratios=[2, 4]).push_to_hub("ada/causal")
    train(folder)
    Codec(model).push_to_hub("ada/emptied")
    Codec(model).push_to_hub("ada/written", revision="next")
    push_folders(Path(folder).with_name("bare"))


def push_folders(place: Path) -> None:
    """Folders without a card are pushed where there is one, and again as other weights."""
    from tiny import tiny_model

    from codecplus.cli import main as codecplus

    for seed in (0, 1):
        folder = str(place / str(seed))
        tiny_model(seed=seed, downsampling_ratios=[2, 4]).save_pretrained(folder)
        assert codecplus(["push", "ada/annotated", "--model", folder]) == 0
        assert codecplus(["push", "ada/made", "--model", folder]) == 0


def train(folder: str) -> None:
    """A Trainer pushes what it trained; then the folder is pushed as it would be without us."""
    import torch
    from tiny import tiny_model
    from transformers import Trainer, TrainingArguments

    from codecplus.cli import main as codecplus

    place = Path(folder).with_name("trained")
    clips = [{"input_values": torch.randn(1, 160)} for _ in range(4)]
    arguments = TrainingArguments(
        str(place),
        max_steps=1,
        learning_rate=0.00125,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        hub_model_id="ada/trained",
        push_to_hub=True,
        hub_strategy="end",
        save_strategy="no",
    )
    trainer = Trainer(tiny_model(downsampling_ratios=[2, 4]), arguments, train_dataset=clips)
    trainer.train()
    trainer.push_to_hub(tags=["mine"], license="mit")
    Trainer.create_model_card.__wrapped__(trainer, tags=["mine"], license="mit")
    assert "More information needed" in (place / "README.md").read_text()
    assert codecplus(["push", "ada/folder", "--model", str(place)]) == 0


if __name__ == "__main__":
    main(sys.argv[1])
