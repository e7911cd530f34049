#!/usr/bin/env bash
# A newcomer's hour: from an empty virtual environment and the wheels in dist/ to a fine-tuned checkpoint on a Hub.
# Run by `make newcomer`. It reads nothing of the checkout but the wheels, the pinned versions and the Hub of the tests.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/../.." && pwd)
place=$(mktemp -d)
hub=
trap 'test -z "$hub" || kill "$hub"; rm -rf "$place"' EXIT
unset PYTHONPATH
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} HF_HOME=$place/huggingface HF_HUB_DISABLE_TELEMETRY=1
# The Hub of the tests takes LFS uploads, as the Hub did before Xet.
export HF_HUB_DISABLE_XET=1

step() { echo "== $1 (${SECONDS} s)"; }

wheel=$(find "$checkout/dist" -name 'codecplus-*-manylinux*.whl' -o -name 'codecplus-*-macosx*.whl')
test -n "$wheel" || wheel=$(find "$checkout/dist" -name 'codecplus-*-any.whl')
weights=$(find "$checkout/dist" -name 'codecplus_weights-*.whl')

step "install the wheels with core dependencies alone"
"${PYTHON:-python3}" -m venv "$place/venv"
export PATH=$place/venv/bin:$PATH
pip install --quiet -c "$checkout/constraints.txt" "$wheel" "$weights"
pip check
cd "$place"

step "quickstart in Python, without a network"
export HF_HUB_OFFLINE=1
cp "$(python -c 'import codecplus, pathlib; print(pathlib.Path(codecplus.__file__).parent / "assets" / "demo.flac")')" song.flac
python - <<'PYTHON'
from pathlib import Path

from codecplus import load_codec
from codecplus.utils import load_audio, save_audio

audio, sr = load_audio("song.flac")
codec = load_codec("dac", sample_rate=sr)
again = codec.decode(codec.encode(audio))
assert again.shape == audio.shape, (again.shape, audio.shape)
save_audio(again, "again.wav", sr)
codec.compress("song.flac", "song.dacp", bitrate=6.0)
assert Path("song.dacp").stat().st_size < Path("song.flac").stat().st_size / 10
Path("recordings").mkdir()
for number in range(4):
    save_audio(audio[..., number * sr : (number + 1) * sr], f"recordings/{number}.wav", sr)
PYTHON

step "a folder, compressed and back"
codecplus encode recordings/ -o coded/ --bitrate 6
codecplus info coded/
codecplus decode coded/ -o decoded/
test "$(ls decoded | wc -l)" = 4

step "install the extras"
pip install --quiet -c "$checkout/constraints.txt" "$wheel[eval,train,tokenize]"
pip check

step "an evaluation and a leaderboard"
codecplus eval --model dac-16khz-live --codec opus --bitrate-per-channel 6 --data recordings/ -o results/
codecplus leaderboard results/ -o board.html
test -s board.html

step "a set of tokens, loaded by datasets"
codecplus tokenize --data recordings/ --model dac-16khz-live -o tokens/
python - <<'PYTHON'
from datasets import load_dataset

rows = load_dataset("tokens", split="train")
assert len(rows) == 4 and all(row["error"] is None for row in rows), rows
print(rows)
PYTHON

step "a fine-tuned checkpoint"
codecplus train --model dac-44khz-small --data recordings/ -o mine --steps 1 --batch 1 --workers 0

step "pushed to a Hub on the loopback, and pulled by stock transformers"
python - "$checkout/tests/hub" endpoint.txt <<'PYTHON' &
import sys
import time
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from hub_server import running_hub

with running_hub() as hub:
    Path(sys.argv[2]).write_text(hub.endpoint)
    time.sleep(3600)
PYTHON
hub=$!
for _ in $(seq 100); do test -s endpoint.txt || sleep 0.2; done
export HF_HUB_OFFLINE=0 HF_TOKEN=hf_writer HF_ENDPOINT
HF_ENDPOINT=$(cat endpoint.txt)
codecplus push ada/mine --model mine
python - <<'PYTHON'
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("ada/mine")
assert type(model).__module__.startswith("transformers."), type(model)
with torch.no_grad():
    print("codes of", tuple(model(torch.zeros(1, 1, 44100)).audio_codes.shape))
PYTHON
step "done"
