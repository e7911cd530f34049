"""The demo Space of codecplus: one module per tab, and the work they do in modules that know
nothing of Gradio.

The work: settings, shelf, coding, pictures, sound_link, live, ratings, listening, quiz.
The pages: hear_tab, quiz_tab, try_tab, live_tab, compare_tab, listening_tab, leaderboard_tab.
Actions for scripts and agents: scripts.
"""

import contextlib
import importlib.util
import os

with contextlib.suppress(ImportError):
    import spaces  # noqa: F401 - where there is ZeroGPU: it must come before torch  # pyright: ignore[reportMissingImports]

if importlib.util.find_spec("codecplus") is None:
    raise SystemExit(
        "The package codecplus is neither installed nor in this folder. Let "
        "`codecplus push --space -o FOLDER` write the folder: it takes package and weights along."
    )

# Two visitors are served at a time: each has its share of the cores. Read when torch is first
# imported.
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2)))
