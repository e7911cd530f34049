// Rate against quality: a line per codec, a point per rate with its 95 % interval, on a logarithmic axis of rates.
window.codecplus.plot = (element, props, watch) => {
  const { make } = window.codecplus;
  const root = element.querySelector(".cp-root");
  const COLOURS = ["#14b8a6", "#f97316", "#6366f1", "#e11d48", "#84a80d", "#0ea5e9", "#a855f7", "#a16207"];
  const svg = (tag, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const nice = (low, high, count) => { // round steps that cover the range
    const rough = (high - low || Math.abs(high) || 1) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find(factor => factor * power >= rough);
    const first = Math.floor(low / step), last = Math.ceil(high / step);
    return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
  };

  function draw() {
    root.replaceChildren();
    const value = props.value, points = value?.points ?? [];
    if (!points.length) return;
    const width = Math.max(320, root.clientWidth || 800), height = width < 560 ? 280 : 340;
    const left = 52, right = 14, top = 14, bottom = 46;
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group" });
    picture.setAttribute("aria-label", `${value.title} against bitrate`);
    const rates = points.map(point => point.kbps), all = points.flatMap(({ mean, low, high }) => [mean, low ?? mean, high ?? mean]);
    const lowest = Math.log2(Math.min(...rates)) - 0.2, highest = Math.log2(Math.max(...rates)) + 0.2;
    const ticks = nice(Math.min(...all), Math.max(...all), 5);
    const x = kbps => left + (width - left - right) * (Math.log2(kbps) - lowest) / (highest - lowest);
    const y = mean => height - bottom - (height - top - bottom) * (mean - ticks[0]) / (ticks.at(-1) - ticks[0] || 1);
    for (const tick of ticks) {
      picture.append(svg("line", { class: "cp-grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
        svg("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
    }
    for (const kbps of [0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256]) {
      if (Math.log2(kbps) < lowest || Math.log2(kbps) > highest) continue;
      picture.append(svg("line", { class: "cp-grid", x1: x(kbps), x2: x(kbps), y1: top, y2: height - bottom }),
        svg("text", { x: x(kbps), y: height - bottom + 18, "text-anchor": "middle" }, String(kbps)));
    }
    picture.append(svg("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, "kbit/s per channel, measured"));
    const legend = make("div", "cp-legend");
    const told = make("p", "cp-hint", "Press a dot for its numbers.");
    told.setAttribute("role", "status");
    [...new Set(points.map(point => point.codec))].forEach((codec, i) => {
      const colour = COLOURS[i % COLOURS.length], mine = points.filter(point => point.codec === codec).sort((a, b) => a.kbps - b.kbps);
      picture.append(svg("polyline", { points: mine.map(p => `${x(p.kbps)},${y(p.mean)}`).join(" "), fill: "none", stroke: colour, "stroke-width": 2 }));
      for (const { kbps, mean, low, high } of mine) {
        if (low !== null) picture.append(svg("line", { x1: x(kbps), x2: x(kbps), y1: y(low), y2: y(high), stroke: colour, "stroke-width": 1.5, opacity: 0.6 }));
        const text = `${codec}: ${mean.toPrecision(4)} at ${kbps.toFixed(2)} kbit/s`;
        // A finger needs more than the dot: a larger circle, which is not seen, takes the press.
        const dot = svg("g", { tabindex: 0, role: "button", "aria-label": text, class: "cp-dot" });
        dot.append(
          svg("circle", { cx: x(kbps), cy: y(mean), r: 16, fill: "transparent" }),
          svg("circle", { cx: x(kbps), cy: y(mean), r: 4.5, fill: colour }),
          svg("title", {}, text),
        );
        const say = () => { told.textContent = text; };
        dot.addEventListener("click", say);
        dot.addEventListener("focus", say);
        picture.append(dot);
      }
      const entry = make("span", "", codec), mark = make("i");
      mark.style.background = colour;
      entry.prepend(mark);
      legend.append(entry);
    });
    root.append(make("b", "cp-plot-title", value.title + (value.better ? ` (${value.better} is better)` : "")), picture, told, legend);
  }

  watch("value", draw);
  let last = 0;
  new ResizeObserver(() => { if (Math.abs(root.clientWidth - last) > 4) { last = root.clientWidth; draw(); } }).observe(root);
  draw();
};
