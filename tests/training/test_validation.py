"""Scores of speech during training: they come from a process that may die."""

import os
import subprocess
import sys

import numpy as np
import pytest

from codecplus.training.speech_scores import RATE, SpeechScorer


class Fatal:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)


@pytest.fixture
def pair(rng):
    pytest.importorskip("pystoi")
    swell = np.sin(np.arange(2 * RATE) / 1000)
    reference = (0.1 * swell * rng.standard_normal(2 * RATE)).astype(np.float32)
    return reference, reference + 0.01 * rng.standard_normal(2 * RATE).astype(np.float32)


def test_a_crash_costs_the_scores_of_one_pair(pair):
    scorer = SpeechScorer()
    before, fatal, after = scorer([pair, (pair[0], Fatal()), pair])
    scorer.close()
    assert 0.5 < before["stoi"] < 1
    assert fatal == {}
    assert after == before


def test_silence_has_no_score(pair):
    scorer = SpeechScorer()
    scores = scorer([(0 * pair[0], pair[1])])
    scorer.close()
    assert "pesq_wb" not in scores[0]


def test_a_script_without_a_main_block_gets_scores(pair, tmp_path):
    np.save(tmp_path / "pair.npy", np.stack(pair))
    script = tmp_path / "train.py"
    script.write_text(
        "import numpy as np\n"
        "from codecplus.training.speech_scores import SpeechScorer\n"
        f"print(SpeechScorer()([np.load({str(tmp_path / 'pair.npy')!r})]))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "'stoi': 0." in done.stdout
