// A live call: microphone or clip, through the server, to the loudspeaker; every packet is timed.
// The way through the server and its rate change while the call goes on.
window.codecplus.live = (element, props, watch) => {
  const { make, makeButton, makeStatus, mostFlying, say, url } = window.codecplus;
  const root = element.querySelector(".cp-root");
  const PACKET_SECONDS = 0.02;
  const MOST_BUFFERED = 1 << 16; // bytes that wait in the socket
  const KEPT = 50; // packets that the figures are of

  // Runs beside the page: gathers 20 ms, and plays what comes back as soon as enough of it is there.
  const WORKLET = `
    const JitterBuffer = ${window.codecplus.JitterBuffer};
    class Ends extends AudioWorkletProcessor {
      constructor() {
        super();
        this.size = Math.round(sampleRate * ${PACKET_SECONDS});
        this.gathered = new Float32Array(this.size);
        this.count = 0;
        this.buffer = new JitterBuffer(sampleRate);
        this.port.onmessage = ({ data }) => this.buffer.push(data);
      }
      gather(sample) {
        this.gathered[this.count++] = sample;
        if (this.count < this.size) return;
        const { held, late } = this.buffer;
        this.port.postMessage({ samples: this.gathered.slice(), held, late });
        this.count = 0;
      }
      process(inputs, outputs) {
        const input = inputs[0][0] ?? [];
        for (const sample of input) this.gather(sample);
        this.buffer.pull(outputs[0][0]);
        return true;
      }
    }
    registerProcessor("ends", Ends);`;

  const SENTENCES = {
    NotAllowedError: "The browser may not use the microphone; allow it, or choose the clip.",
    NotFoundError: "There is no microphone; choose the clip.",
  };
  const SOURCES = { microphone: "Microphone", clip: "A clip that repeats" };
  const WAYS = { codec: "codecplus", opus: "Opus", raw: "No codec" };
  const FIGURES = {
    total: "Mouth to ear",
    packet: "Gathering a packet",
    codec: "Codec, one frame and its look-ahead",
    trip: "To the server and back",
    work: "of which encoding and decoding",
    buffer: "Waiting to be played",
    device: "Sound card, as the browser tells",
    rate: "On the line",
    late: "Where the line was too slow",
  };

  let source = "microphone";
  let way = "codec";
  let call = null;

  // ---- what is on the page

  const start = makeButton("Start", "cp-primary", () => (call ? stop("Stopped.") : begin()));
  const sources = pressed("Sound from", SOURCES, source, name => {
    source = name;
    if (call) stop("Press Start again.");
  });
  const ways = pressed("Sent through", WAYS, way, name => {
    way = name;
    change();
  });
  const said = makeStatus(
    "cp-hint cp-said",
    "Wear headphones: a loudspeaker would feed the microphone.",
  );
  const level = make("div", "cp-level");
  const fill = make("i");
  level.append(fill);
  const values = {};
  const table = make("dl", "cp-measured");
  for (const [key, text] of Object.entries(FIGURES)) {
    const item = make("div", `cp-${key}`);
    values[key] = make("dd", "", "–");
    item.append(make("dt", "", text), values[key]);
    table.append(item);
  }
  const controls = make("div", "cp-live-bar");
  controls.append(start, sources);
  const hint = "Switch while you talk, and move the rate: the call goes on.";
  root.replaceChildren(controls, ways, make("p", "cp-hint", hint), level, said, table);

  // A group of buttons of which one is pressed.
  function pressed(label, texts, first, onchoose) {
    const group = make("div", "cp-words");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", label);
    const shown = make("span", "cp-label", label);
    shown.setAttribute("aria-hidden", "true"); // the group has this name
    group.append(shown);
    for (const [name, text] of Object.entries(texts)) {
      const choice = makeButton(text, "cp-word", () => {
        for (const other of group.querySelectorAll("button")) {
          other.setAttribute("aria-pressed", other === choice);
        }
        onchoose(name);
      });
      choice.dataset.name = name;
      choice.setAttribute("aria-pressed", name === first);
      group.append(choice);
    }
    return group;
  }

  function median(list) {
    const sorted = [...list].sort((a, b) => a - b);
    return sorted[Math.floor(list.length / 2)] ?? 0;
  }

  function mean(list) {
    return list.reduce((sum, value) => sum + value, 0) / Math.max(1, list.length);
  }

  // ---- the call

  function settings() {
    return { way, checkpoint: props.checkpoint, kbps: props.kbps };
  }

  async function openMicrophone(state) {
    if (!navigator.mediaDevices) {
      throw new Error("This browser gives the microphone only to pages over https.");
    }
    state.stream = await navigator.mediaDevices.getUserMedia({
      audio: {
        echoCancellation: false,
        noiseSuppression: false,
        autoGainControl: false,
        channelCount: 1,
      },
    });
    try {
      return state.context.createMediaStreamSource(state.stream);
    } catch {
      // Firefox gives the microphone at its own rate only; then the server resamples.
      await state.context.close();
      state.context = new AudioContext({ latencyHint: "interactive" });
      return state.context.createMediaStreamSource(state.stream);
    }
  }

  async function openClip(state) {
    const answer = await fetch(url(props.clip));
    const node = state.context.createBufferSource();
    node.buffer = await state.context.decodeAudioData(await answer.arrayBuffer());
    node.loop = true;
    node.start();
    return node;
  }

  function openSocket(state) {
    const address = new URL(url("live-socket"), location.href);
    address.protocol = address.protocol.replace("http", "ws");
    address.search = new URLSearchParams({ ...settings(), rate: state.context.sampleRate });
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => {
      if (typeof data === "string") receiveWord(state, JSON.parse(data));
      else receivePacket(state, data);
    };
    socket.onclose = () => {
      if (call === state) stop("The line is down; press Start for another call.");
    };
    return socket;
  }

  async function begin() {
    start.disabled = true;
    const state = { trips: [], works: [], bits: [], held: 0, late: 0, flying: 0, dropped: 0 };
    try {
      const Context = window.AudioContext || window.webkitAudioContext;
      state.context = new Context({ sampleRate: props.rate, latencyHint: "interactive" });
      const input = await (source === "microphone" ? openMicrophone(state) : openClip(state));
      const script = URL.createObjectURL(new Blob([WORKLET], { type: "text/javascript" }));
      await state.context.audioWorklet.addModule(script);
      state.node = new AudioWorkletNode(state.context, "ends", { outputChannelCount: [1] });
      state.socket = openSocket(state);
      state.node.port.onmessage = ({ data }) => send(state, data);
      input.connect(state.node).connect(state.context.destination);
      await state.context.resume();
      call = state;
      start.textContent = "Stop";
      say(said, "Calling…");
    } catch (error) {
      hangUp(state);
      say(said, SENTENCES[error.name] ?? error.message);
    }
    start.disabled = false;
  }

  function hangUp(state) {
    state.socket?.close();
    for (const track of state.stream?.getTracks() ?? []) track.stop();
    if (state.context && state.context.state !== "closed") state.context.close();
  }

  function stop(why) {
    const state = call;
    call = null;
    if (state) hangUp(state);
    start.textContent = "Start";
    fill.style.width = "0";
    say(said, why);
  }

  // Tell the server another way or rate; the call goes on.
  function change() {
    if (call?.ready && call.socket.readyState === WebSocket.OPEN) {
      call.socket.send(JSON.stringify(settings()));
    }
  }

  function receiveWord(state, message) {
    if (message.error) {
      stop(message.error);
      return;
    }
    state.latency = 1000 * message.latency;
    if (message.ready) {
      state.ready = true;
      change(); // what was chosen while the line was opened
    }
    state.bits = []; // of the way before
    const name = WAYS[message.changed?.way ?? way];
    const rate = state.context.sampleRate;
    say(said, `On the air at ${rate} Hz. What you hear went through: ${name}.`);
    root.dataset.way = message.changed?.way ?? way;
  }

  function showLevel(samples) {
    const energy = mean(samples.map(x => x * x));
    fill.style.width = `${Math.min(100, 130 * energy ** 0.25)}%`;
  }

  function send(state, { samples, held, late }) {
    state.held = held;
    state.late = late;
    showLevel(samples);
    const isOpen = state.ready && state.socket.readyState === WebSocket.OPEN;
    if (!isOpen || state.socket.bufferedAmount > MOST_BUFFERED) return;
    if (state.flying >= mostFlying(state.works)) {
      state.dropped++;
      return;
    }
    state.flying++;
    const message = new ArrayBuffer(8 + 2 * samples.length);
    new DataView(message).setFloat64(0, performance.now(), true);
    const pcm = new Int16Array(message, 8);
    samples.forEach((sample, i) => {
      pcm[i] = Math.max(-32768, Math.min(32767, Math.round(32768 * sample)));
    });
    state.socket.send(message);
  }

  function keep(list, value) {
    list.push(value);
    if (list.length > KEPT) list.shift();
  }

  function receivePacket(state, data) {
    const view = new DataView(data);
    state.flying--;
    keep(state.trips, performance.now() - view.getFloat64(0, true));
    keep(state.works, view.getFloat32(8, true));
    keep(state.bits, view.getUint32(12, true));
    const pcm = new Int16Array(data, 16);
    if (pcm.length) state.node.port.postMessage(Float32Array.from(pcm, x => x / 32768));
    state.packets = (state.packets ?? 0) + 1;
    if (state.packets % 10 === 0) show(state);
  }

  function show(state) {
    const milliseconds = (value, digits = 0) => `${value.toFixed(digits)} ms`;
    const { context } = state;
    const device = (context.baseLatency || 0) + (context.outputLatency || 0);
    const parts = {
      packet: 1000 * PACKET_SECONDS,
      codec: state.latency,
      trip: median(state.trips),
      buffer: (1000 * state.held) / context.sampleRate,
      device: 1000 * device,
    };
    for (const [key, value] of Object.entries(parts)) values[key].textContent = milliseconds(value);
    values.work.textContent = milliseconds(median(state.works), 1);
    // Gathering a packet and filling the codec's frame are one and the same wait where both have
    // 20 ms.
    const wait = Math.max(parts.packet, parts.codec);
    const total = wait + parts.trip + parts.buffer + parts.device;
    values.total.textContent = milliseconds(total);
    const kbps = mean(state.bits) / PACKET_SECONDS / 1000;
    values.rate.textContent = `${kbps.toFixed(2)} kbit/s`;
    values.late.textContent = `${state.late} gaps, ${state.dropped} dropped`;
    root.dataset.total = total;
    root.dataset.kbps = kbps;
  }

  watch(["checkpoint", "kbps"], change);
};
