"""The page's scripts without a browser: node runs them."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

STATIC = Path(__file__).parents[2] / "spaces_demo" / "static"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="the scripts are run by node; install it")

# A line that brings 20 ms every 20 ms, and after `hiccup` seconds late packets all at once.
LINE = """
globalThis.window = {};
require(process.argv[1]);
const rate = 16000, { sound, hiccup, seconds } = JSON.parse(process.argv[2]);
const buffer = new window.codecplus.JitterBuffer(rate), output = new Float32Array(128);
const tone = t => 0.3 * Math.sin(2 * Math.PI * 200 * t);
const signals = {
  // 0.3 s of every second are quiet
  speech: t => (t % 1 < 0.7 ? tone(t) : 0.001 * Math.sin(9000 * t)),
  tone,
  silence: () => 0,
};
const delays = [], heard = [];
let sent = 0;
for (let played = 0; played < seconds * rate; played += 128) {
  const now = played / rate, stalls = now > hiccup && now < hiccup + 0.3;
  while (!stalls && sent + 320 <= played) {
    buffer.push(Float32Array.from({ length: 320 }, (_, i) => signals[sound]((sent + i) / rate)));
    sent += 320;
  }
  buffer.pull(output);
  heard.push(...output);
  delays.push(1000 * buffer.held / rate);
}
let step = 0;
for (let i = Math.round(Math.max(1, (hiccup % 99) + 0.4) * rate); i < heard.length; i++) {
  step = Math.max(step, Math.abs(heard[i] - heard[i - 1]));
}
const at = second => Math.min(...delays.slice(second * 125, (second + 1) * 125));
const least = Array.from({ length: seconds }, (_, second) => at(second));
console.log(JSON.stringify({ late: buffer.late, step, most: Math.max(...delays), least }));
"""


def run(sound, hiccup, seconds):
    arguments = json.dumps({"sound": sound, "hiccup": hiccup, "seconds": seconds})
    done = subprocess.run(
        [NODE, "-e", LINE, str(STATIC / "jitter.js"), arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("sound", "patience"), [("speech", 3), ("silence", 3), ("tone", 8)])
def test_the_delay_after_a_hiccup_is_drained_within_seconds(sound, patience):
    said = run(sound, hiccup=4, seconds=4 + patience + 2)
    assert said["late"] == 1
    assert said["most"] > 200  # the late packets come all at once
    assert said["least"][-1] <= 45  # ms


@pytest.mark.parametrize("sound", ["speech", "tone"])
def test_draining_makes_no_click(sound):
    """From one sample to the next the tone itself moves by 0.024, and a cut without fade by 0.6."""
    assert run(sound, hiccup=4, seconds=14)["step"] < 0.035


def test_a_steady_line_is_left_alone():
    said = run("speech", hiccup=99, seconds=6)
    assert said["late"] == 0
    assert set(said["least"][1:]) == {said["least"][1]}


@pytest.mark.parametrize(
    ("work", "most"), [([], 3), ([4] * 50, 15), ([4] * 40 + [100] * 10, 3), ([900] * 50, 2)]
)
def test_a_slow_server_gets_as_many_packets_as_it_handles_in_300_ms(work, most):
    script = (
        "globalThis.window = {}; require(process.argv[1]);"
        "console.log(window.codecplus.mostFlying(JSON.parse(process.argv[2])));"
    )
    command = [NODE, "-e", script, str(STATIC / "jitter.js"), json.dumps(work)]
    assert int(subprocess.run(command, capture_output=True, check=True).stdout) == most


# A page without a browser, whose tracks arrive when the test says so.
PAGE = """
const asked = [], arrivals = {};
const clock = { currentTime: 0 };
const started = [];
class Context {
  get currentTime() { return clock.currentTime; }
  async resume() {}
  async decodeAudioData(name) { return { name, duration: 7 }; }
  createGain() { return { gain: { setValueCurveAtTime() {} }, connect: x => x }; }
  createBufferSource() {
    return {
      connect: x => x, stop() {},
      start(at, offset) { started.push([this.buffer.name, offset - (at - clock.currentTime)]); },
    };
  }
}
globalThis.window = { AudioContext: Context };
globalThis.document = { documentElement: {} };
globalThis.MutationObserver = class { observe() {} };
globalThis.requestAnimationFrame = () => {};
globalThis.fetch = path => {
  asked.push(path);
  return new Promise(resolve => {
    arrivals[path] = () => resolve({ ok: true, arrayBuffer: async () => path });
  });
};
require(process.argv[1]);
const settle = () => new Promise(resolve => setTimeout(resolve, 0));
(async () => {
  const player = new window.codecplus.Player(() => {});
  player.load(["a", "b", "c"], 1);
  player.play(); // before anything is there
  await settle();
  arrivals["/b"]();
  await settle();
  const first = { asked: [...asked], plays: player.sources !== null, audible: player.audible };
  clock.currentTime = 2;
  player.choose(2); // not there yet: the present one goes on
  const meanwhile = player.audible;
  arrivals["/a"]();
  await settle();
  arrivals["/c"]();
  await settle();
  const last = { audible: player.audible, now: player.now, started };
  // Others wait for a promise, and do not when they are chosen.
  asked.length = 0;
  let arrive;
  player.load(["d", "e", "f"], 0, new Promise(resolve => { arrive = resolve; }));
  const waiting = [];
  for (const step of [() => arrivals["/d"](), () => player.choose(2), () => arrivals["/f"](), arrive]) {
    step();
    await settle();
    await settle();
    waiting.push([...asked]);
  }
  console.log(JSON.stringify({ first, meanwhile, last, waiting }));
})();
"""


def test_the_chosen_track_comes_first_and_later_ones_join_at_the_same_position():
    command = [NODE, "-e", PAGE, str(STATIC / "player.js")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["first"] == {"asked": ["/b", "/a"], "plays": True, "audible": 1}
    assert said["meanwhile"] == 1
    assert said["last"]["audible"] == 2
    assert [name for name, _ in said["last"]["started"]] == ["/b", "/a", "/c"]
    for name, offset in said["last"]["started"][1:]:
        assert offset == pytest.approx(said["last"]["now"], abs=1e-6), name
    assert said["waiting"] == [["/d"], ["/d", "/f"], ["/d", "/f"], ["/d", "/f", "/e"]]


@pytest.mark.parametrize("path", sorted(STATIC.glob("*.js")), ids=lambda path: path.name)
def test_every_script_is_javascript(path):
    done = subprocess.run([NODE, "--check", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
