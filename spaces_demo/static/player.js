// Tracks of equal length that start together, of which one is heard: switching is instant and at the same position.
window.codecplus = window.codecplus || {};
(() => {
  let shared = null;
  const context = () => (shared ??= new (window.AudioContext || window.webkitAudioContext)());
  const url = path => (window.gradio_config?.root ?? "").replace(/\/$/, "") + "/" + path;
  const playing = new Set();
  // One track is faded out, then the other in, never across: a mixture of two would be a sound of its own (BS.1534-3, 5.3).
  const FADE = 0.005;
  const rise = Float32Array.from({ length: 33 }, (_, i) => 0.5 - 0.5 * Math.cos(Math.PI * i / 32)), fall = rise.slice().reverse();

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

    // Load tracks, the chosen one before the others. It can be played as soon as it is there.
    async load(paths, first = 0) {
      this.stop();
      this.position = 0;
      this.chosen = first;
      this.buffers = paths.map(() => null);
      const mine = ++this.generation;
      const missing = new Set(paths.keys());
      while (missing.size) {
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

    get duration() { return Math.max(0, ...this.buffers.map(buffer => buffer?.duration ?? 0)); }

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
      this.buffers.forEach((buffer, track) => { if (buffer) this.attach(track, at, this.position); });
      const mine = this.sources;
      mine[this.audible].source.onended = () => {
        if (this.sources !== mine) return;
        this.stop();
        this.position = 0;
        this.onChange();
      };
      playing.add(this);
      const tick = () => { if (this.sources === mine) { this.onChange(); requestAnimationFrame(tick); } };
      tick();
    }

    stop() {
      this.wantsToPlay = false;
      if (!this.sources) return;
      this.position = this.now;
      const old = this.sources;
      this.sources = null;
      old.forEach(({ source }) => { source.onended = null; source.stop(); });
      playing.delete(this);
      this.onChange();
    }

    choose(track) {
      this.chosen = track;
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

  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const clock = seconds => `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;
  const icons = {
    play: '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M7 4.5v15l13-7.5z"/></svg>',
    pause: '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M6 5h4.5v14H6zM13.5 5H18v14h-4.5z"/></svg>',
  };

  function bar(player) {
    const root = make("div", "cp-bar");
    const button = make("button", "cp-play");
    button.type = "button";
    button.onclick = () => (player.sources ? player.stop() : player.play());
    const time = make("span", "cp-time");
    const seek = Object.assign(make("input", "cp-seek"), { type: "range", min: 0, max: 1000, value: 0 });
    seek.setAttribute("aria-label", "Position");
    seek.oninput = () => player.seek(player.duration * seek.value / 1000);
    const loop = Object.assign(make("button", "cp-loop", "Loop"), { type: "button" });
    loop.onclick = () => { player.setLoop(!player.loop); show(); };
    root.append(button, time, seek, loop);
    const show = () => {
      button.innerHTML = player.sources ? icons.pause : icons.play;
      button.setAttribute("aria-label", player.sources ? "Pause" : "Play");
      loop.setAttribute("aria-pressed", player.loop);
      time.textContent = `${clock(player.now)} / ${clock(player.duration)}`;
      seek.setAttribute("aria-valuetext", `${player.now.toFixed(0)} of ${player.duration.toFixed(0)} seconds`);
      if (document.activeElement !== seek || player.sources) seek.value = player.duration ? 1000 * player.now / player.duration : 0;
    };
    return { root, show };
  }

  function wave(canvas, buffer) {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth || 600, height = canvas.clientHeight || 56;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const draw = canvas.getContext("2d"), samples = buffer.getChannelData(0), step = samples.length / canvas.width;
    draw.fillStyle = getComputedStyle(canvas).color;
    for (let x = 0; x < canvas.width; x++) {
      let low = 0, high = 0;
      const end = Math.min(samples.length, Math.ceil((x + 1) * step)), stride = Math.max(1, Math.floor(step / 60));
      for (let i = Math.floor(x * step); i < end; i += stride) { low = Math.min(low, samples[i]); high = Math.max(high, samples[i]); }
      const middle = canvas.height / 2, top = middle - high * middle, bottom = middle - low * middle;
      draw.fillRect(x, top, 1, Math.max(1, bottom - top));
    }
  }

  // A list of tracks, one under the other; a press on a waveform listens to it from there.
  window.codecplus.tracks = (element, props, watch) => {
    const root = element.querySelector(".cp-root");
    let generation = 0;
    const build = async () => {
      const value = props.value, mine = ++generation;
      root.cpPlayer?.stop();
      root.replaceChildren();
      if (!value?.tracks?.length) {
        root.append(make("p", "cp-empty", value?.empty ?? "Nothing to hear yet."));
        return;
      }
      let rows = [];
      // Blind: whoever votes has heard at least a second of all but the reference.
      const heard = new Set(), since = { track: -1, time: 0 };
      const unlock = () => {
        const open = !value.blind || value.tracks.every((_, i) => i === 0 || heard.has(i));
        document.getElementById(value.unlocks)?.toggleAttribute("inert", !open);
        if (open) root.dataset.heard = "true"; else delete root.dataset.heard;
      };
      const player = new Player(() => {
        controls.show();
        if (player.sources && since.track === player.audible) {
          if (context().currentTime - since.time >= Math.min(1, 0.9 * player.duration)) heard.add(player.audible);
        } else Object.assign(since, { track: player.sources ? player.audible : -1, time: context().currentTime });
        unlock();
        rows.forEach(({ row, pick, canvas, cursor }, i) => {
          row.classList.toggle("cp-on", i === player.chosen);
          row.classList.toggle("cp-loading", !player.buffers[i]);
          if (player.buffers[i] && !canvas.dataset.drawn && !value.blind) {
            canvas.dataset.drawn = "true";
            wave(canvas, player.buffers[i]);
          }
          pick.setAttribute("aria-pressed", i === player.chosen);
          cursor.style.left = `${player.duration ? 100 * player.now / player.duration : 0}%`;
        });
      });
      root.cpPlayer = player;
      const controls = bar(player);
      root.append(controls.root);
      rows = value.tracks.map((track, i) => {
        const row = make("div", "cp-track"), pick = make("button", "cp-pick"), place = make("div", "cp-wave");
        const canvas = make("canvas"), cursor = make("i", "cp-cursor");
        pick.type = "button";
        pick.append(make("b", "", track.label), make("small", "", track.note ?? ""));
        pick.onclick = () => { player.choose(i); player.play(); };
        place.onclick = event => {
          player.choose(i);
          const box = place.getBoundingClientRect();
          player.seek(player.duration * (event.clientX - box.left) / box.width).then(() => player.play());
        };
        place.append(canvas, cursor);
        row.append(pick, place);
        root.append(row);
        return { row, pick, canvas, cursor };
      });
      root.append(make("p", "cp-hint", "Press a name to switch: the position stays. Keys 1 to 9 switch, space plays."));
      if (value.link) {
        const { links } = window.codecplus;
        const share = make("div", "cp-share");
        share.append(
          links.copyButton("Copy a link to this sound", () => links.address({ dacp: value.link })),
          make("small", "", `The link holds the coded file, ${value.link.length.toLocaleString("en")} characters: whoever opens it hears the sound.`),
        );
        root.append(share);
      }
      root.tabIndex = 0;
      root.onkeydown = event => {
        const number = Number(event.key);
        if (number >= 1 && number <= rows.length) { player.choose(number - 1); event.preventDefault(); }
        if (event.key === " " && event.target === root) { player.sources ? player.stop() : player.play(); event.preventDefault(); }
      };
      try {
        await player.load(value.tracks.map(track => track.url), Math.min(value.chosen ?? 0, rows.length - 1));
      } catch (error) {
        root.replaceChildren(make("p", "cp-empty", error.message));
        return;
      }
      if (mine !== generation) return;
      const paint = () => value.blind || rows.forEach(({ canvas }, i) => wave(canvas, player.buffers[i]));
      root.dataset.ready = "true";
      new ResizeObserver(paint).observe(root);
    };
    watch("value", () => { delete root.dataset.ready; build(); });
    build();
  };

  // Gradio's pictures have no text of their own.
  new MutationObserver(() => {
    const picture = document.querySelector("#picture img:not([alt^=Mel])");
    if (picture) picture.alt = "Mel spectrograms of the original and of the decoded clip, and the difference of their levels";
  }).observe(document.documentElement, { childList: true, subtree: true });

  Object.assign(window.codecplus, { Player, bar, make, url, context });
})();
