// A large button that records a voice, and sends the recording to the server.
window.codecplus.recorder = (element, props, trigger) => {
  const { make, makeButton, makeStatus, say, url } = window.codecplus;
  const root = element.querySelector(".cp-root");
  const MOST_SECONDS = props.seconds;
  const SENTENCES = {
    NotAllowedError: "The browser may not use the microphone; allow it, or upload a recording.",
    NotFoundError: "There is no microphone; upload a recording.",
  };

  let recording = null;
  const button = makeButton("", "cp-record", () => (recording ? finish() : begin()));
  const dot = make("i");
  const title = make("b", "", "Record your voice");
  const said = makeStatus("", `Up to ${MOST_SECONDS} s; you get it back in about 2 kB.`);
  const level = make("div", "cp-level");
  const fill = make("i");
  level.append(fill);
  const words = make("span");
  words.append(title);
  button.append(dot, words);
  root.replaceChildren(button, said, level);

  async function begin() {
    button.disabled = true;
    try {
      if (!navigator.mediaDevices) {
        throw new Error("This browser gives the microphone only to pages over https.");
      }
      const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
      const recorder = new MediaRecorder(stream);
      const parts = [];
      recorder.ondataavailable = ({ data }) => parts.push(data);
      recorder.onstop = () => send(new Blob(parts, { type: recorder.mimeType }));
      recording = { stream, recorder, begun: performance.now(), meter: meterOf(stream) };
      recorder.start();
      title.textContent = "Stop";
      root.classList.add("cp-recording");
      tick(recording);
    } catch (error) {
      say(said, SENTENCES[error.name] ?? error.message);
    }
    button.disabled = false;
  }

  // Loudness of a stream from 0 to 1, when asked.
  function meterOf(stream) {
    const { context } = window.codecplus;
    const analyser = context().createAnalyser();
    context().resume();
    context().createMediaStreamSource(stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    return () => {
      analyser.getFloatTimeDomainData(samples);
      const energy = samples.reduce((sum, x) => sum + x * x, 0) / samples.length;
      return Math.min(1, 1.3 * energy ** 0.25);
    };
  }

  function tick(mine) {
    if (recording !== mine) return;
    const seconds = (performance.now() - mine.begun) / 1000;
    if (seconds >= MOST_SECONDS) {
      finish();
      return;
    }
    title.textContent = `Stop (${Math.ceil(MOST_SECONDS - seconds)} s)`;
    fill.style.width = `${100 * mine.meter()}%`;
    requestAnimationFrame(() => tick(mine));
  }

  function finish() {
    const { stream, recorder } = recording;
    recording = null;
    recorder.stop();
    for (const track of stream.getTracks()) track.stop();
    title.textContent = "Record again";
    root.classList.remove("cp-recording");
    fill.style.width = "0";
  }

  async function send(blob) {
    say(said, "On its way…");
    const suffix = blob.type.includes("mp4") ? "m4a" : "webm";
    const form = new FormData();
    form.append("files", blob, `voice.${suffix}`);
    const answer = await fetch(url("gradio_api/upload"), { method: "POST", body: form });
    if (!answer.ok) {
      say(said, "The recording did not arrive; try again.");
      return;
    }
    const [path] = await answer.json();
    say(said, "Coded: listen to it on this page, or send its link to somebody.");
    trigger("recorded", { path });
  }
};
