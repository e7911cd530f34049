// A table that a press on a head sorts; cells are numbers with their interval, or text.
window.codecplus.table = (element, props, watch) => {
  const { make } = window.codecplus;
  const root = element.querySelector(".cp-root");
  const show = x => (x === null || x === undefined ? "–" : typeof x === "string" ? x : Math.abs(x) >= 1000 ? x.toFixed(0) : String(Number(x.toPrecision(3))));
  let by = null, down = false;

  function draw() {
    root.replaceChildren();
    const columns = props.value?.columns ?? [], rows = [...(props.value?.rows ?? [])];
    if (!rows.length) return;
    if (by !== null && by < columns.length) rows.sort((a, b) => {
      const [x, y] = [a.cells[by].value, b.cells[by].value];
      if (x === null || y === null) return (x === null) - (y === null); // what is not there comes last
      return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
    });
    const table = make("table", "cp-table cp-board"), head = table.createTHead().insertRow();
    columns.forEach((column, i) => {
      const cell = make("th"), press = Object.assign(make("button", "", column.title + (column.better ? ` ${column.better}` : "")), { type: "button" });
      cell.scope = "col";
      if (i === by) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      press.onclick = () => {
        // The first press shows the best first.
        down = by === i ? !down : column.better === "↑";
        by = i;
        draw();
      };
      cell.append(press);
      head.append(cell);
    });
    const body = table.createTBody();
    for (const { cells, anchor } of rows) {
      const row = body.insertRow();
      if (anchor) row.className = "cp-anchor";
      for (const { value, low, high } of cells) {
        const cell = row.insertCell();
        cell.textContent = show(value);
        if (low !== null && low !== undefined) cell.append(make("small", "", `${show(low)} to ${show(high)}`));
      }
    }
    const scroll = make("div", "cp-scroll");
    scroll.append(table);
    root.append(scroll);
  }
  watch("value", draw);
  draw();
};
