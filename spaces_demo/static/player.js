// Tracks of equal length that start together, of which one is heard: switching is instant and at the
// same position.
window.codecplus = window.codecplus || {};
(() => {
  let shared = null;

  // The audio context of the page, made when it is first needed.
  function context() {
    if (shared === null) shared = new (window.AudioContext || window.webkitAudioContext)();
    return shared;
  }

  function url(path) {
    const root = window.gradio_config?.root ?? "";
    return `${root.replace(/\/$/, "")}/${path}`;
  }

  const playing = new Set();
  // One track is faded out, then the other in, never across: a mixture of two would be a sound of
  // its own (BS.1534-3, 5.3).
  const FADE = 0.005; // seconds
  const rise = Float32Array.from({ length: 33 }, (_, i) => 0.5 - 0.5 * Math.cos((Math.PI * i) / 32));
  const fall = rise.slice().reverse();

  class Player {
    constructor(onChange) {
      this.onChange = onChange;
      this.buffers = []; // null while a track is on its way
      this.chosen = 0;
      this.position = 0; // seconds, while it stands still
      this.sources = null; // of every loaded track, while it plays
      this.audible = 0; // the track that sounds; differs from the chosen one while that is loaded
      this.loop = false;
      this.generation = 0;
      this.wantsToPlay = false;
    }

    // Load tracks, the chosen one before the others. It can be played as soon as it is there. Tracks
    // that nobody chose wait for the promise `others`.
    async load(paths, first = 0, others = null) {
      this.stop();
      this.position = 0;
      this.chosen = first;
      this.buffers = paths.map(() => null);
      const mine = ++this.generation;
      const missing = new Set(paths.keys());
      while (missing.size) {
        if (others && !missing.has(this.chosen)) {
          const chosen = new Promise(resolve => { this.wake = resolve; });
          await Promise.race([others, chosen]);
          if (mine !== this.generation) return;
        }
        const next = missing.has(this.chosen) ? this.chosen : Math.min(...missing);
        missing.delete(next);
        const answer = await fetch(url(paths[next]));
        if (!answer.ok) throw new Error(await answer.text());
        const buffer = await context().decodeAudioData(await answer.arrayBuffer());
        if (mine !== this.generation) return;
        this.buffers[next] = buffer;
        this.join(next);
        this.onChange();
      }
    }

    // Let a track that has just been loaded take part.
    join(track) {
      if (this.sources) {
        const at = context().currentTime + 0.03;
        const passed = at - this.started;
        this.attach(track, at, this.loop ? passed % this.duration : passed);
        if (track === this.chosen) this.fadeTo(track);
      } else if (this.wantsToPlay && track === this.chosen) {
        this.play();
      }
    }

    attach(track, at, offset) {
      const buffer = this.buffers[track];
      const source = context().createBufferSource();
      const gain = context().createGain();
      source.buffer = buffer;
      source.loop = this.loop;
      gain.gain.value = track === this.audible ? 1 : 0;
      source.connect(gain).connect(context().destination);
      source.start(at, offset);
      this.sources[track] = { source, gain };
    }

    get duration() {
      return Math.max(0, ...this.buffers.map(buffer => buffer?.duration ?? 0));
    }

    // The position as a share of the duration.
    get share() {
      return this.duration ? this.now / this.duration : 0;
    }

    get now() {
      if (!this.sources) return this.position;
      const passed = Math.max(0, context().currentTime - this.started);
      return this.loop ? passed % this.duration : Math.min(passed, this.duration);
    }

    async play() {
      if (this.sources || !this.buffers.length) return;
      await context().resume();
      if (this.sources) return;
      this.wantsToPlay = !this.buffers[this.chosen];
      if (this.wantsToPlay) return;
      for (const other of playing) other.stop();
      const at = context().currentTime + 0.03;
      if (this.position >= this.duration - 0.02) this.position = 0;
      this.started = at - this.position;
      this.free = at; // until when a switch is under way
      this.audible = this.chosen;
      this.sources = [];
      this.buffers.forEach((buffer, track) => {
        if (buffer) this.attach(track, at, this.position);
      });
      const mine = this.sources;
      mine[this.audible].source.onended = () => {
        if (this.sources !== mine) return;
        this.stop();
        this.position = 0;
        this.onChange();
      };
      playing.add(this);
      const tick = () => {
        if (this.sources !== mine) return;
        this.onChange();
        requestAnimationFrame(tick);
      };
      tick();
    }

    stop() {
      this.wantsToPlay = false;
      if (!this.sources) return;
      this.position = this.now;
      const old = this.sources;
      this.sources = null;
      old.forEach(({ source }) => {
        source.onended = null;
        source.stop();
      });
      playing.delete(this);
      this.onChange();
    }

    choose(track) {
      this.chosen = track;
      if (!this.buffers[track]) this.wake?.();
      this.fadeTo(track);
      this.onChange();
    }

    fadeTo(track) {
      if (!this.sources?.[track] || track === this.audible) return;
      const at = Math.max(context().currentTime, this.free);
      this.sources[this.audible].gain.gain.setValueCurveAtTime(fall, at, FADE);
      this.sources[track].gain.gain.setValueCurveAtTime(rise, at + FADE, FADE);
      this.free = at + 2 * FADE + 0.001;
      this.audible = track;
    }

    // Play, or pause.
    toggle() {
      if (this.sources) this.stop();
      else this.play();
    }

    // Play a track from a share of its length on.
    async listenFrom(track, share) {
      this.choose(track);
      await this.seek(this.duration * share);
      await this.play();
    }

    async seek(seconds) {
      const on = this.sources !== null;
      this.stop();
      this.position = Math.min(Math.max(0, seconds), this.duration);
      this.onChange();
      if (on) await this.play();
    }

    setLoop(on) {
      const now = this.now;
      this.loop = on;
      if (this.sources) this.seek(now);
    }
  }

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function makeButton(text, className, onclick) {
    const button = make("button", className, text);
    button.type = "button";
    button.onclick = onclick;
    return button;
  }

  // A line that screen readers read out when it changes.
  function makeStatus(className, text) {
    const line = make("p", className, text);
    line.setAttribute("role", "status");
    return line;
  }

  // Write a text only where it changes, so that it is read out once.
  function say(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  // Show the next page of a tab. Who acted is at its heading: a screen reader reads it out, and the
  // keyboard goes on from there. The first page of all takes the focus from nobody.
  function turnPage(root, ...parts) {
    const isFirst = !root.hasChildNodes();
    root.replaceChildren(...parts);
    const heading = root.querySelector("h2");
    if (isFirst || !heading) return;
    heading.tabIndex = -1;
    heading.focus();
  }

  function clock(seconds) {
    const minutes = Math.floor(seconds / 60);
    const rest = (seconds % 60).toFixed(1).padStart(4, "0");
    return `${minutes}:${rest}`;
  }

  const icons = {
    play: '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M7 4.5v15l13-7.5z"/></svg>',
    pause:
      '<svg viewBox="0 0 24 24" aria-hidden="true">' +
      '<path d="M6 5h4.5v14H6zM13.5 5H18v14h-4.5z"/></svg>',
  };

  // The controls of a player: play, position, loop. `show` brings them up to date.
  function bar(player) {
    const root = make("div", "cp-bar");
    const button = makeButton("", "cp-play", () => player.toggle());
    const time = make("span", "cp-time");
    const seek = make("input", "cp-seek");
    Object.assign(seek, { type: "range", min: 0, max: 1000, value: 0 });
    seek.setAttribute("aria-label", "Position");
    seek.oninput = () => player.seek((player.duration * seek.value) / 1000);
    const loop = makeButton("Loop", "cp-loop", () => {
      player.setLoop(!player.loop);
      show();
    });
    root.append(button, time, seek, loop);

    let shown = null;
    function show() {
      const state = player.sources ? "pause" : "play";
      if (state !== shown) {
        shown = state;
        button.innerHTML = icons[state];
        button.setAttribute("aria-label", state === "pause" ? "Pause" : "Play");
      }
      loop.setAttribute("aria-pressed", player.loop);
      time.textContent = `${clock(player.now)} / ${clock(player.duration)}`;
      const position = player.now.toFixed(0);
      const length = player.duration.toFixed(0);
      seek.setAttribute("aria-valuetext", `${position} of ${length} seconds`);
      const isHeld = document.activeElement === seek && !player.sources;
      if (!isHeld) seek.value = 1000 * player.share;
    }
    return { root, show };
  }

  // Counts how long each of several sounds was heard. Call `count` whenever the player changes.
  class HeardTimes {
    constructor(player, names) {
      this.player = player;
      this.names = names;
      this.seconds = Object.fromEntries(names.map(name => [name, 0]));
      this.last = null; // when time was last counted, while something plays
    }

    count() {
      const now = context().currentTime;
      const name = this.names[this.player.audible];
      if (this.last !== null) this.seconds[name] += now - this.last;
      this.last = this.player.sources ? now : null;
    }

    // Whether a sound was heard for so long; what a browser's clock is short of is forgiven.
    atLeast(name, seconds) {
      return this.seconds[name] + 0.05 >= seconds;
    }
  }

  Object.assign(window.codecplus, {
    HeardTimes,
    Player,
    bar,
    context,
    make,
    makeButton,
    makeStatus,
    say,
    turnPage,
    url,
  });
})();
