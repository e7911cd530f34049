// Pictures of a sound that share one axis of time: spectrogram, waveform and codes, each with a
// cursor that shows what is heard now. A press listens from there.
(() => {
  const { make, url } = window.codecplus;

  // A frame for a picture: a cursor, and a press that is told as a share of the width.
  function frame(className, onpress) {
    const root = make("div", `cp-picture ${className}`);
    const cursor = make("i", "cp-cursor");
    root.append(cursor);
    if (onpress) {
      root.classList.add("cp-pressable");
      root.onclick = event => {
        const box = root.getBoundingClientRect();
        onpress((event.clientX - box.left) / box.width);
      };
    }
    const place = share => {
      cursor.style.left = `${100 * share}%`;
    };
    return { root, place };
  }

  // A mel spectrogram, or several of which one is shown. `ticks` are marks of the axis in kHz.
  function spectrogram({ ticks, alt, onpress }) {
    const { root, place } = frame("cp-spectrogram", onpress);
    const image = make("img");
    image.alt = alt;
    image.draggable = false;
    root.prepend(image);
    const axis = make("div", "cp-axis");
    axis.setAttribute("aria-hidden", "true"); // the picture's text names the axis
    ticks.forEach(({ text, share }, i) => {
      const isLast = i === ticks.length - 1;
      const mark = make("span", "", isLast ? `${text} kHz` : text);
      mark.style.bottom = `${100 * share}%`;
      axis.append(mark);
    });
    root.append(axis);
    const show = (path, text) => {
      const address = url(path);
      if (image.getAttribute("src") !== address) image.src = address;
      if (text) image.alt = text;
    };
    return { root, place, show };
  }

  function drawWave(canvas, buffer) {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = (canvas.clientWidth || 600) * ratio;
    canvas.height = (canvas.clientHeight || 56) * ratio;
    const draw = canvas.getContext("2d");
    draw.fillStyle = getComputedStyle(canvas).color;
    const samples = buffer.getChannelData(0);
    const step = samples.length / canvas.width;
    const stride = Math.max(1, Math.floor(step / 60));
    const middle = canvas.height / 2;
    for (let x = 0; x < canvas.width; x++) {
      const end = Math.min(samples.length, Math.ceil((x + 1) * step));
      let low = 0;
      let high = 0;
      for (let i = Math.floor(x * step); i < end; i += stride) {
        low = Math.min(low, samples[i]);
        high = Math.max(high, samples[i]);
      }
      const top = middle - high * middle;
      const bottom = middle - low * middle;
      draw.fillRect(x, top, 1, Math.max(1, bottom - top));
    }
  }

  // A waveform; nothing is drawn before `draw` is given a buffer.
  function wave({ onpress }) {
    const { root, place } = frame("cp-wave", onpress);
    const canvas = make("canvas");
    root.prepend(canvas);
    let drawn = null;
    const draw = buffer => {
      drawn = buffer;
      drawWave(canvas, buffer);
    };
    new ResizeObserver(() => {
      if (drawn) drawWave(canvas, drawn);
    }).observe(root);
    return { root, place, draw };
  }

  // A colour for each code. Codes have no order: neighbours get colours that differ.
  function colourOf(code) {
    const hue = 160 + 230 * ((code * 0.61803) % 1);
    const lightness = 28 + 44 * ((code * 0.75488) % 1);
    return `hsl(${hue.toFixed(0)} 70% ${lightness.toFixed(0)}%)`;
  }

  // Codes as a picture: a row for each codebook, a column for each frame.
  // `file` holds 16-bit integers, codebook after codebook; `books` and `frames` count them.
  function codes({ file, books, frames, onpress }) {
    const { root, place: placeCursor } = frame("cp-codes", onpress);
    const canvas = make("canvas");
    canvas.width = frames;
    canvas.height = books;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `The codes: ${books} numbers for each of ${frames} frames`);
    root.prepend(canvas);
    root.style.setProperty("--books", books);
    let numbers = null;
    let used = books;

    function draw() {
      if (!numbers) return;
      const pen = canvas.getContext("2d");
      pen.clearRect(0, 0, frames, books);
      for (let book = 0; book < books; book++) {
        pen.globalAlpha = book < used ? 1 : 0.1;
        for (let t = 0; t < frames; t++) {
          pen.fillStyle = colourOf(numbers[book * frames + t]);
          pen.fillRect(t, book, 1, 1);
        }
      }
    }

    async function load() {
      const answer = await fetch(url(file));
      if (!answer.ok) return;
      numbers = new Uint16Array(await answer.arrayBuffer());
      draw();
    }

    // How many codebooks, from the first on, make the sound that is heard.
    function use(count) {
      if (count === used) return;
      used = count;
      draw();
    }

    // The numbers that are heard at a share of the length.
    function at(share) {
      if (!numbers) return [];
      const t = Math.min(frames - 1, Math.floor(share * frames));
      return Array.from({ length: used }, (_, book) => numbers[book * frames + t]);
    }

    load();
    return { root, place: placeCursor, use, at };
  }

  // A line with the codes that are heard now. Screen readers leave it out: it changes all the time.
  function numbersNow(picture) {
    const root = make("p", "cp-numbers");
    root.setAttribute("aria-hidden", "true");
    const show = share => {
      root.textContent = picture.at(share).join(" ");
    };
    return { root, show };
  }

  // Seconds below pictures of one length.
  function timeAxis(seconds) {
    const root = make("div", "cp-seconds");
    root.setAttribute("aria-hidden", "true");
    const steps = [0.25, 0.5, 1, 2, 5, 10, 20];
    const step = steps.find(size => seconds / size <= 8) ?? 20;
    for (let second = 0; second <= seconds + 1e-6; second += step) {
      const mark = make("span", "", second === 0 ? "0 s" : String(second));
      mark.style.left = `${(100 * second) / seconds}%`;
      root.append(mark);
    }
    return root;
  }

  Object.assign(window.codecplus, {
    pictures: { codes, numbersNow, spectrogram, timeAxis, wave },
  });
})();
