// Rate against quality: a line per codec, a point per rate with its 95 % interval, on a logarithmic
// axis of rates. Codecs for context have broken lines.
window.codecplus.plot = (element, props, watch) => {
  const { make, makeStatus } = window.codecplus;
  const root = element.querySelector(".cp-root");
  const COLOURS = [
    "#14b8a6", "#f97316", "#6366f1", "#e11d48", "#84a80d", "#0ea5e9", "#a855f7", "#a16207",
  ];
  const RATES = [0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256]; // kbit/s
  const MARGIN = { left: 52, right: 14, top: 14, bottom: 46 };
  const HINT = "Press a dot for its numbers.";
  let lastText = HINT; // stays when the window changes
  const FINGER = 16; // radius of what takes a press, beyond the dot that is seen

  function svg(tag, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // Round steps that cover a range.
  function niceSteps(low, high, count) {
    const rough = (high - low || Math.abs(high) || 1) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find(factor => factor * power >= rough);
    const first = Math.floor(low / step);
    const last = Math.ceil(high / step);
    const steps = Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
    return steps.map(value => Number(value.toPrecision(12)));
  }

  function scales(points, width, height) {
    const { left, right, top, bottom } = MARGIN;
    const rates = points.map(point => point.kbps);
    const lowest = Math.log2(Math.min(...rates)) - 0.2;
    const highest = Math.log2(Math.max(...rates)) + 0.2;
    const values = points.flatMap(({ mean, low, high }) => [mean, low ?? mean, high ?? mean]);
    const ticks = niceSteps(Math.min(...values), Math.max(...values), 5);
    const range = ticks.at(-1) - ticks[0] || 1;
    const x = kbps => {
      const share = (Math.log2(kbps) - lowest) / (highest - lowest);
      return left + (width - left - right) * share;
    };
    const y = mean => height - bottom - ((height - top - bottom) * (mean - ticks[0])) / range;
    const isInside = kbps => Math.log2(kbps) >= lowest && Math.log2(kbps) <= highest;
    return { x, y, ticks, rates: RATES.filter(isInside) };
  }

  function drawGrid(picture, { x, y, ticks, rates }, width, height) {
    const { left, right, top, bottom } = MARGIN;
    for (const tick of ticks) {
      const line = { class: "cp-grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) };
      const place = { x: left - 8, y: y(tick) + 4, "text-anchor": "end" };
      picture.append(svg("line", line), svg("text", place, String(tick)));
    }
    let free = 0; // from where on a number has room
    for (const kbps of rates) {
      const line = { class: "cp-grid", x1: x(kbps), x2: x(kbps), y1: top, y2: height - bottom };
      picture.append(svg("line", line));
      if (x(kbps) < free) continue;
      free = x(kbps) + 20;
      const place = { x: x(kbps), y: height - bottom + 18, "text-anchor": "middle" };
      picture.append(svg("text", place, String(kbps)));
    }
    const place = { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" };
    picture.append(svg("text", place, "kbit/s per channel, measured"));
  }

  function pointText({ codec, mean, low, high, kbps }) {
    const interval = low === null ? "" : ` (${low.toPrecision(3)} to ${high.toPrecision(3)})`;
    return `${codec}: ${mean.toPrecision(3)}${interval} at ${kbps.toFixed(2)} kbit/s`;
  }

  function dot(point, colour, { x, y }, onpress) {
    const text = pointText(point);
    const place = { cx: x(point.kbps), cy: y(point.mean) };
    const group = svg("g", { tabindex: 0, role: "button", "aria-label": text, class: "cp-dot" });
    // A finger needs more than the dot: a larger circle, which is not seen, takes the press.
    group.append(
      svg("circle", { ...place, r: FINGER, fill: "transparent" }),
      svg("circle", { ...place, r: 4.5, fill: colour }),
      svg("title", {}, text),
    );
    const press = () => onpress(group, text);
    group.addEventListener("click", press);
    group.addEventListener("focus", press);
    return group;
  }

  function drawCodec(picture, points, colour, scale, onpress) {
    const { x, y } = scale;
    const corners = points.map(({ kbps, mean }) => `${x(kbps)},${y(mean)}`).join(" ");
    const line = { points: corners, fill: "none", stroke: colour, "stroke-width": 2 };
    if (!points[0].ours) line["stroke-dasharray"] = "5 4";
    picture.append(svg("polyline", line));
    for (const { kbps, low, high } of points) {
      if (low === null) continue;
      const bar = { x1: x(kbps), x2: x(kbps), y1: y(low), y2: y(high) };
      picture.append(svg("line", { ...bar, stroke: colour, "stroke-width": 1.5, opacity: 0.6 }));
    }
    return points.map(point => dot(point, colour, scale, onpress));
  }

  function draw() {
    root.replaceChildren();
    const value = props.value;
    const points = value?.points ?? [];
    if (!points.length) return;
    const width = Math.max(300, root.clientWidth || 800);
    const height = width < 560 ? 280 : 340;
    const scale = scales(points, width, height);
    const size = { viewBox: `0 0 ${width} ${height}`, width, height };
    const picture = svg("svg", { ...size, role: "group" });
    picture.setAttribute("aria-label", `${value.title} against bitrate`);
    drawGrid(picture, scale, width, height);

    const told = makeStatus("cp-told", lastText);
    const legend = make("div", "cp-legend");
    let pressed = null;
    const onpress = (group, text) => {
      pressed?.classList.remove("cp-on");
      pressed = group;
      group.classList.add("cp-on");
      lastText = text;
      told.textContent = text;
    };
    const codecs = [...new Set(points.map(point => point.codec))];
    const dots = [];
    codecs.forEach((codec, i) => {
      const colour = COLOURS[i % COLOURS.length];
      const mine = points.filter(point => point.codec === codec);
      mine.sort((a, b) => a.kbps - b.kbps);
      dots.push(...drawCodec(picture, mine, colour, scale, onpress));
      const entry = make("span", "", codec);
      const mark = make("i");
      mark.style.background = colour;
      entry.prepend(mark);
      legend.append(entry);
    });
    picture.append(...dots); // above all lines
    const better = value.better ? ` (${value.better} is better)` : "";
    root.append(make("b", "cp-plot-title", value.title + better), picture, told, legend);
  }

  watch("value", () => {
    lastText = HINT;
    draw();
  });
  let last = 0;
  new ResizeObserver(() => {
    if (Math.abs(root.clientWidth - last) <= 4) return;
    last = root.clientWidth;
    draw();
  }).observe(root);
  draw();
};
