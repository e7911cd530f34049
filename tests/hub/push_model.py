"""What a user's process pushes by transformers' own methods: `python push_model.py FOLDER`."""

import sys


def main(folder: str) -> None:
    from tiny import tiny_model

    model = tiny_model(downsampling_ratios=[2, 4], sampling_rate=8000)
    model.push_to_hub("ada/pushed", tags=["mine"])
    model.push_to_hub("ada/written")
    model.save_pretrained(folder, push_to_hub=True, repo_id="ada/saved")
    tiny_model(True, downsampling_ratios=[2, 4]).push_to_hub("ada/causal")


if __name__ == "__main__":
    main(sys.argv[1])
