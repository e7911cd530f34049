// A live call: microphone or clip, through the codec on the server, to the loudspeaker; every packet is timed.
window.codecplus.live = (element, props, watch) => {
  const { make, url } = window.codecplus;
  const root = element.querySelector(".cp-root");
  // Runs beside the page: gathers 20 ms, and plays what comes back as soon as enough of it is there.
  const WORKLET = `
    const JitterBuffer = ${window.codecplus.JitterBuffer};
    class Ends extends AudioWorkletProcessor {
      constructor() {
        super();
        this.size = Math.round(sampleRate * 0.02);
        this.gathered = new Float32Array(this.size);
        this.count = 0;
        this.buffer = new JitterBuffer(sampleRate);
        this.port.onmessage = ({ data }) => this.buffer.push(data);
      }
      process(inputs, outputs) {
        const input = inputs[0][0];
        if (input) for (const sample of input) {
          this.gathered[this.count++] = sample;
          if (this.count === this.size) {
            const { held, late } = this.buffer;
            this.port.postMessage({ samples: this.gathered.slice(), held, late });
            this.count = 0;
          }
        }
        this.buffer.pull(outputs[0][0]);
        return true;
      }
    }
    registerProcessor("ends", Ends);`;
  const start = Object.assign(make("button", "cp-primary", "Start"), { type: "button" });
  const source = make("div", "cp-words");
  let from = "microphone", call = null;
  for (const [name, text] of [["microphone", "Microphone"], ["clip", "A clip that repeats"]]) {
    const choice = Object.assign(make("button", "cp-word", text), { type: "button" });
    choice.dataset.source = name;
    choice.setAttribute("aria-pressed", name === from);
    choice.onclick = () => { from = name; for (const other of source.children) other.setAttribute("aria-pressed", other === choice); if (call) stop(); };
    source.append(choice);
  }
  const said = make("p", "cp-hint cp-said", "Wear headphones: a loudspeaker would feed the microphone.");
  said.setAttribute("role", "status");
  const level = make("div", "cp-level"), fill = make("i");
  level.append(fill);
  const table = make("dl", "cp-measured");
  const values = {};
  for (const [key, text] of [["total", "Mouth to ear"], ["packet", "Gathering a packet"], ["codec", "Codec, one frame and its look-ahead"], ["trip", "To the server and back"], ["work", "of which encoding and decoding"], ["buffer", "Waiting to be played"], ["device", "Sound card, as the browser tells"], ["rate", "On the line"], ["late", "Where the line was too slow"]]) {
    const item = make("div", `cp-${key}`);
    values[key] = make("dd", "", "–");
    item.append(make("dt", "", text), values[key]);
    table.append(item);
  }
  const controls = make("div", "cp-live-bar");
  controls.append(start, source);
  root.replaceChildren(controls, level, said, table);

  const median = list => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)] ?? 0;

  async function begin() {
    start.disabled = true;
    const state = { trips: [], works: [], bits: [], held: 0, late: 0, flying: 0, dropped: 0 };
    try {
      state.context = new (window.AudioContext || window.webkitAudioContext)({ sampleRate: props.rate, latencyHint: "interactive" });
      let input;
      if (from === "microphone") {
        if (!navigator.mediaDevices) throw new Error("This browser gives the microphone only to pages over https.");
        state.stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 } });
        try { input = state.context.createMediaStreamSource(state.stream); } catch {
          // Firefox gives the microphone at its own rate only; then the server resamples.
          await state.context.close();
          state.context = new AudioContext({ latencyHint: "interactive" });
          input = state.context.createMediaStreamSource(state.stream);
        }
      } else {
        const data = await (await fetch(url(props.clip))).arrayBuffer();
        input = state.context.createBufferSource();
        input.buffer = await state.context.decodeAudioData(data);
        input.loop = true;
        input.start();
      }
      await state.context.audioWorklet.addModule(URL.createObjectURL(new Blob([WORKLET], { type: "text/javascript" })));
      state.node = new AudioWorkletNode(state.context, "ends", { outputChannelCount: [1] });
      const address = new URL(url("live-socket"), location.href);
      address.protocol = address.protocol.replace("http", "ws");
      address.search = new URLSearchParams({ checkpoint: props.checkpoint, kbps: props.kbps, rate: state.context.sampleRate });
      state.socket = new WebSocket(address);
      state.socket.binaryType = "arraybuffer";
      state.socket.onmessage = ({ data }) => (typeof data === "string" ? word(state, JSON.parse(data)) : packet(state, data));
      state.socket.onclose = () => { if (call === state) stop("The line is down; press Start for another call."); };
      state.node.port.onmessage = ({ data }) => send(state, data);
      input.connect(state.node).connect(state.context.destination);
      await state.context.resume();
      call = state;
      start.textContent = "Stop";
      said.textContent = "Calling…";
    } catch (error) {
      state.stream?.getTracks().forEach(track => track.stop());
      state.context?.close();
      said.textContent = error.name === "NotAllowedError" ? "The browser may not use the microphone; allow it, or choose the clip." : error.name === "NotFoundError" ? "There is no microphone; choose the clip." : error.message;
    }
    start.disabled = false;
  }

  function stop(why) {
    const state = call;
    call = null;
    state?.socket.close();
    state?.stream?.getTracks().forEach(track => track.stop());
    state?.context.close();
    start.textContent = "Start";
    fill.style.width = "0";
    said.textContent = why ?? said.textContent;
  }

  function word(state, message) {
    if (message.error) { stop(message.error); return; }
    state.ready = true;
    state.latency = 1000 * message.latency;
    said.textContent = `On the air at ${state.context.sampleRate} Hz. What you hear went through the codec.`;
  }

  function send(state, { samples, held, late }) {
    state.held = held;
    state.late = late;
    fill.style.width = `${Math.min(100, 130 * Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length) ** 0.5)}%`;
    if (!state.ready || state.socket.readyState !== 1 || state.socket.bufferedAmount > 1 << 16) return;
    // Where the server is slower than the voice, packets are lost rather than heard ever later.
    if (state.flying > 15) { state.dropped++; return; }
    state.flying++;
    const message = new ArrayBuffer(8 + 2 * samples.length), pcm = new Int16Array(message, 8);
    new DataView(message).setFloat64(0, performance.now(), true);
    for (let i = 0; i < samples.length; i++) pcm[i] = Math.max(-32768, Math.min(32767, Math.round(32768 * samples[i])));
    state.socket.send(message);
  }

  function packet(state, data) {
    const view = new DataView(data), keep = (list, value) => { list.push(value); if (list.length > 50) list.shift(); };
    state.flying--;
    keep(state.trips, performance.now() - view.getFloat64(0, true));
    keep(state.works, view.getFloat32(8, true));
    keep(state.bits, view.getUint32(12, true));
    const pcm = new Int16Array(data, 16);
    if (pcm.length) state.node.port.postMessage(Float32Array.from(pcm, x => x / 32768));
    if (state.trips.length % 10 === 0) show(state);
  }

  function show(state) {
    const ms = value => `${value.toFixed(0)} ms`, rate = state.context.sampleRate;
    const parts = {
      packet: 20, codec: state.latency, trip: median(state.trips), buffer: 1000 * state.held / rate,
      device: 1000 * ((state.context.baseLatency || 0) + (state.context.outputLatency || 0)),
    };
    for (const [key, value] of Object.entries(parts)) values[key].textContent = ms(value);
    values.work.textContent = `${median(state.works).toFixed(1)} ms`;
    // Gathering a packet and filling the codec's frame are one and the same wait where both have 20 ms.
    const total = Math.max(parts.packet, parts.codec) + parts.trip + parts.buffer + parts.device;
    values.total.textContent = ms(total);
    const seconds = 0.02 * state.bits.length;
    values.rate.textContent = `${(state.bits.reduce((a, b) => a + b, 0) / seconds / 1000).toFixed(2)} kbit/s`;
    values.late.textContent = `${state.late} gaps, ${state.dropped} dropped`;
    root.dataset.total = total;
  }

  start.onclick = () => (call ? stop("Stopped.") : begin());
  watch(["checkpoint", "kbps", "rate"], () => { if (call) stop("Settings changed; press Start again."); });
};
